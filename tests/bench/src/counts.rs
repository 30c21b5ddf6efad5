//! What was counted, by name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The services that the functions call.
const AWS: [&str; 6] = ["dynamodb", "sqs", "s3", "events", "secretsmanager", "kms"];

/// Amounts by name. An operation of a service is `{service}:{operation}`, e.g. `dynamodb:GetItem`; a quantity that is no
/// call is `{service}.{quantity}`, e.g. `dynamodb.write_units`. Averages have fractions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts(BTreeMap<String, f64>);

impl Counts {
    /// Adds to an amount.
    pub fn add(&mut self, name: impl Into<String>, amount: f64) {
        *self.0.entry(name.into()).or_default() += amount;
    }

    /// An amount; 0 for what was not met.
    pub fn get(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// All calls to a service.
    pub fn calls(&self, service: &str) -> f64 {
        let of_service = |name: &str| name.strip_prefix(service).is_some_and(|rest| rest.starts_with(':'));
        self.0.iter().filter(|(name, _)| of_service(name)).fold(0.0, |sum, (_, amount)| sum + amount)
    }

    /// All calls to AWS.
    pub fn calls_to_aws(&self) -> f64 {
        AWS.iter().map(|service| self.calls(service)).sum()
    }

    /// Name and amount, in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, amount)| (name.as_str(), *amount))
    }

    /// Adds some times what another holds.
    #[must_use]
    pub fn plus(mut self, other: &Self, times: f64) -> Self {
        for (name, amount) in &other.0 {
            self.add(name, amount * times);
        }
        self
    }

    /// What came since an earlier count.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut since = self.clone().plus(earlier, -1.0);
        since.0.retain(|_, amount| *amount != 0.0);
        since
    }

    /// The average over so many.
    #[must_use]
    pub fn per(&self, number: usize) -> Self {
        Self::default().plus(self, 1.0 / float(number.max(1)))
    }
}

/// A number to reckon with.
#[expect(clippy::cast_precision_loss, reason = "what is counted here stays far below 2^52")]
pub fn float(number: usize) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_added_compared_and_averaged() {
        let mut before = Counts::default();
        before.add("sqs:SendMessage", 1.0);
        let mut after = before.clone();
        after.add("dynamodb:GetItem", 3.0);
        after.add("dynamodb:Query", 1.0);
        after.add("dynamodb.read_units", 2.5);
        let since = after.since(&before);
        assert_eq!(since.iter().count(), 3);
        assert_eq!(since.calls("dynamodb").to_bits(), 4.0_f64.to_bits());
        assert_eq!(since.calls_to_aws().to_bits(), 4.0_f64.to_bits());
        assert_eq!(since.per(4).get("dynamodb:GetItem").to_bits(), 0.75_f64.to_bits());
        assert_eq!(since.get("sqs:SendMessage").to_bits(), 0.0_f64.to_bits());
    }
}

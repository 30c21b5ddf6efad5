//! Counted amounts by name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The services that the functions call.
const AWS: [&str; 6] = ["dynamodb", "sqs", "s3", "events", "secretsmanager", "kms"];

/// Amounts by name. Calls of an operation are `{service}:{operation}`, such as `dynamodb:GetItem`. Other quantities are
/// `{service}.{quantity}`, such as `dynamodb.write_units`. Averages have fractions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts(BTreeMap<String, f64>);

impl Counts {
    /// Adds to the amount with this name.
    pub fn add(&mut self, name: impl Into<String>, amount: f64) {
        *self.0.entry(name.into()).or_default() += amount;
    }

    /// Returns an amount; 0 if the name was never added.
    pub fn get(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// Returns the number of calls to a service.
    pub fn calls(&self, service: &str) -> f64 {
        let of_service = |name: &str| name.strip_prefix(service).is_some_and(|rest| rest.starts_with(':'));
        self.0.iter().filter(|(name, _)| of_service(name)).fold(0.0, |sum, (_, amount)| sum + amount)
    }

    /// Returns the number of calls to all AWS services.
    pub fn calls_to_aws(&self) -> f64 {
        AWS.iter().map(|service| self.calls(service)).sum()
    }

    /// Iterates over names and amounts in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, amount)| (name.as_str(), *amount))
    }

    /// Adds another set of amounts `times` times.
    #[must_use]
    pub fn plus(mut self, other: &Self, times: f64) -> Self {
        for (name, amount) in &other.0 {
            self.add(name, amount * times);
        }
        self
    }

    /// Returns the amounts that were added since an earlier state of the same counts.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut since = self.clone().plus(earlier, -1.0);
        since.0.retain(|_, amount| *amount != 0.0);
        since
    }

    /// Returns the average over `number` of something.
    #[must_use]
    pub fn per(&self, number: usize) -> Self {
        Self::default().plus(self, 1.0 / float(number.max(1)))
    }
}

/// Converts a count to a floating-point number.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
pub fn float(number: usize) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_added_subtracted_and_averaged() {
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

//! A table of list prices, each with its source.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The list prices of one region.
#[derive(Clone, Debug, Deserialize)]
pub struct Prices {
    /// The AWS region, such as `us-east-1`.
    pub region: String,
    /// The date of the look-up, `YYYY-MM-DD`.
    pub on: String,
    /// The prices by name, such as `lambda_request`.
    pub prices: BTreeMap<String, Price>,
}

/// One list price without free tiers and discounts.
#[derive(Clone, Debug, Deserialize)]
pub struct Price {
    /// US dollars for `per` units.
    pub usd: f64,
    /// Number of units that cost `usd`.
    pub per: f64,
    /// The unit, such as "request", in the words of AWS's page.
    pub unit: String,
    /// The URL of the page with the price.
    pub source: String,
    /// The other source, if the price was not seen on AWS's own page.
    #[serde(default)]
    pub unverified: Option<String>,
}

impl Prices {
    /// Returns the cost of an amount in US dollars.
    ///
    /// # Errors
    /// The table has no such price.
    pub fn of(&self, name: &str, amount: f64) -> Result<f64, String> {
        let price = self.prices.get(name).ok_or_else(|| format!("the table of prices has no {name}"))?;
        Ok(amount / price.per * price.usd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn price_is_scaled_to_the_amount() {
        let prices: Prices = serde_json::from_str(include_str!("../prices.json")).unwrap();
        assert!((prices.of("dynamodb_write_unit", 2e6).unwrap() - 1.25).abs() < 1e-6);
        assert!(prices.of("gold", 1.0).is_err());
        for (name, price) in &prices.prices {
            assert!(price.usd > 0.0 && price.per > 0.0 && price.source.starts_with("https://"), "{name}");
        }
    }
}

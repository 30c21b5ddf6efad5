//! DynamoDB's expressions, as far as this project writes them. Everything else is refused.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{
    Item,
    dynamodb::{NAMES, VALUES},
    wire::{Served, invalid},
};

/// The names and values that a request's expressions may use.
pub(crate) struct Terms<'a> {
    names: &'a Value,
    values: &'a Value,
}

impl<'a> Terms<'a> {
    /// Takes a request's terms. DynamoDB refuses a request with a term that no expression uses.
    pub(crate) fn of(request: &'a Value) -> Served<Self> {
        let expressions = [
            "ConditionExpression",
            "UpdateExpression",
            "KeyConditionExpression",
            "FilterExpression",
            "ProjectionExpression",
        ];
        let used: BTreeSet<String> =
            expressions.iter().filter_map(|name| request[name].as_str()).flat_map(words).collect();
        for terms in [&request[NAMES], &request[VALUES]] {
            if let Some(unused) = terms.as_object().into_iter().flatten().find(|(name, _)| !used.contains(*name)) {
                return Err(invalid(format!("no expression uses {}", unused.0)));
            }
        }
        Ok(Self { names: &request[NAMES], values: &request[VALUES] })
    }

    fn name(&self, word: &str) -> Served<String> {
        if !word.starts_with('#') {
            return Ok(word.to_owned());
        }
        self.names[word].as_str().map(str::to_owned).ok_or_else(|| invalid(format!("{word} has no name")))
    }

    /// The value of a placeholder or of an attribute. `None`: the item does not have the attribute.
    fn value(&self, word: &str, item: Option<&Item>) -> Served<Option<Value>> {
        if word.starts_with(':') {
            let value = self.values.get(word).ok_or_else(|| invalid(format!("{word} has no value")))?;
            return Ok(Some(value.clone()));
        }
        let name = self.name(word)?;
        Ok(item.and_then(|item| item.get(&name)).cloned())
    }

    /// Returns `true` if a condition holds for an item, or for the lack of one.
    pub(crate) fn hold(&self, condition: &str, item: Option<&Item>) -> Served<bool> {
        let words = words(condition);
        let mut reader = Reader { terms: self, words: &words, at: 0, item };
        let holds = reader.any()?;
        if reader.at == words.len() { Ok(holds) } else { Err(not_understood(condition)) }
    }

    /// Changes an item as an update expression says.
    pub(crate) fn apply(&self, update: &str, item: &mut Item) -> Served<()> {
        let before = item.clone();
        let given = |word: &str| -> Served<Value> {
            self.value(word, Some(&before))?.ok_or_else(|| invalid(format!("{word} is not an attribute of the item")))
        };
        for (verb, clause) in clauses(update) {
            let clause: Vec<&str> = clause.iter().map(String::as_str).collect();
            let name = self.name(clause[0])?;
            if name == "pk" || name == "sk" {
                return Err(invalid(format!("{name} is part of the key")));
            }
            match (verb.as_str(), &clause[1..]) {
                ("SET", ["=", value]) => {
                    item.insert(name, given(value)?);
                }
                ("SET", ["=", "if_not_exists", "(", kept, ",", value, ")"]) => {
                    let value = match self.value(kept, Some(&before))? {
                        Some(kept) => kept,
                        None => given(value)?,
                    };
                    item.insert(name, value);
                }
                ("REMOVE", []) => {
                    item.remove(&name);
                }
                ("ADD" | "DELETE", [value]) => {
                    match changed(before.get(&name), verb == "ADD", &given(value)?)? {
                        Some(changed) => item.insert(name, changed),
                        None => item.remove(&name),
                    };
                }
                _ => return Err(not_understood(update)),
            }
        }
        Ok(())
    }
}

fn not_understood(expression: &str) -> crate::wire::Refusal {
    invalid(format!("the double does not understand: {expression}"))
}

/// The clauses of an update expression, each with its verb.
fn clauses(update: &str) -> Vec<(String, Vec<String>)> {
    let (mut verb, mut depth) = (String::new(), 0);
    let (mut clause, mut clauses) = (Vec::new(), Vec::new());
    for word in words(update).into_iter().chain(["END".to_owned()]) {
        let is_verb = matches!(word.as_str(), "SET" | "REMOVE" | "ADD" | "DELETE" | "END");
        if is_verb || word == "," && depth == 0 {
            if !clause.is_empty() {
                clauses.push((verb.clone(), std::mem::take(&mut clause)));
            }
            if is_verb {
                verb = word;
            }
            continue;
        }
        depth += i32::from(word == "(") - i32::from(word == ")");
        clause.push(word);
    }
    clauses
}

/// A number or a set of texts after `ADD` or `DELETE`. `None`: the set became empty.
fn changed(old: Option<&Value>, is_add: bool, by: &Value) -> Served<Option<Value>> {
    let number = |value: &Value| value["N"].as_str().and_then(|number| number.parse::<i64>().ok());
    if is_add && let Some(by) = number(by) {
        let old = match old {
            Some(old) => number(old).ok_or_else(|| invalid("ADD to what is not a number"))?,
            None => 0,
        };
        return Ok(Some(json!({"N": (old + by).to_string()})));
    }
    let set = |value: &Value| -> Served<BTreeSet<String>> {
        let members = value["SS"].as_array().ok_or_else(|| invalid("not a set of texts"))?;
        Ok(members.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    };
    let (old, by) = (old.map(set).transpose()?.unwrap_or_default(), set(by)?);
    let changed: Vec<&String> = if is_add { old.union(&by).collect() } else { old.difference(&by).collect() };
    Ok((!changed.is_empty()).then(|| json!({"SS": changed})))
}

fn words(expression: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut is_open = false;
    for letter in expression.chars() {
        let is_word = letter.is_alphanumeric() || matches!(letter, '_' | '#' | ':' | '.' | '-');
        let closes = matches!(letter, '=' | '>') && words.last().is_some_and(|word| word == "<" || word == ">");
        match words.last_mut().filter(|_| is_word && is_open || closes) {
            Some(word) => word.push(letter),
            None if letter.is_whitespace() => {}
            None => words.push(letter.to_string()),
        }
        is_open = is_word;
    }
    words
}

struct Reader<'a> {
    terms: &'a Terms<'a>,
    words: &'a [String],
    at: usize,
    item: Option<&'a Item>,
}

impl Reader<'_> {
    fn next(&mut self) -> Served<String> {
        let word = self.words.get(self.at).ok_or_else(|| not_understood(&self.words.join(" ")))?;
        self.at += 1;
        Ok(word.clone())
    }

    fn take(&mut self, word: &str) -> bool {
        let is_taken = self.words.get(self.at).is_some_and(|next| next == word);
        self.at += usize::from(is_taken);
        is_taken
    }

    fn expect(&mut self, word: &str) -> Served<()> {
        if self.take(word) { Ok(()) } else { Err(not_understood(&self.words.join(" "))) }
    }

    fn any(&mut self) -> Served<bool> {
        let mut holds = self.all()?;
        while self.take("OR") {
            holds |= self.all()?;
        }
        Ok(holds)
    }

    fn all(&mut self) -> Served<bool> {
        let mut holds = self.one()?;
        while self.take("AND") {
            holds &= self.one()?;
        }
        Ok(holds)
    }

    fn one(&mut self) -> Served<bool> {
        if self.take("(") {
            let holds = self.any()?;
            self.expect(")")?;
            return Ok(holds);
        }
        let word = self.next()?;
        match word.as_str() {
            "attribute_exists" | "attribute_not_exists" => {
                self.expect("(")?;
                let name = self.next()?;
                let name = self.terms.name(&name)?;
                self.expect(")")?;
                let exists = self.item.is_some_and(|item| item.contains_key(&name));
                Ok(exists == (word == "attribute_exists"))
            }
            "begins_with" => {
                self.expect("(")?;
                let text = self.next()?;
                self.expect(",")?;
                let prefix = self.next()?;
                self.expect(")")?;
                let (text, prefix) = (self.terms.value(&text, self.item)?, self.terms.value(&prefix, self.item)?);
                let texts = text
                    .as_ref()
                    .and_then(|text| text["S"].as_str())
                    .zip(prefix.as_ref().and_then(|prefix| prefix["S"].as_str()));
                Ok(texts.is_some_and(|(text, prefix)| text.starts_with(prefix)))
            }
            _ => self.compared(&word),
        }
    }

    fn compared(&mut self, left: &str) -> Served<bool> {
        let left = self.terms.value(left, self.item)?;
        let operator = self.next()?;
        if operator == "IN" {
            self.expect("(")?;
            let mut is_found = false;
            loop {
                let one = self.next()?;
                is_found |= left.is_some() && left == self.terms.value(&one, self.item)?;
                if self.take(")") {
                    return Ok(is_found);
                }
                self.expect(",")?;
            }
        }
        let right = self.next()?;
        let Some((left, right)) = left.zip(self.terms.value(&right, self.item)?) else { return Ok(false) };
        let number = |value: &Value| value["N"].as_str().and_then(|number| number.parse::<i64>().ok());
        let order = match (number(&left), number(&right)) {
            (Some(left), Some(right)) => left.cmp(&right),
            _ if left["S"].is_string() && right["S"].is_string() => left["S"].as_str().cmp(&right["S"].as_str()),
            _ => return Ok(operator == "=" && left == right),
        };
        match operator.as_str() {
            "=" => Ok(order.is_eq()),
            "<" => Ok(order.is_lt()),
            "<=" => Ok(order.is_le()),
            ">" => Ok(order.is_gt()),
            ">=" => Ok(order.is_ge()),
            _ => Err(not_understood(&self.words.join(" "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_mean_the_same_as_in_dynamodb() {
        let request = json!({
            "ConditionExpression": "#s :r :n :one :j :p",
            "ExpressionAttributeNames": {"#s": "status"},
            "ExpressionAttributeValues": {":r": {"S": "running"}, ":n": {"N": "10"}, ":one": {"N": "1"},
                                          ":j": {"SS": ["j"]}, ":p": {"S": "VER"}}
        });
        let terms = Terms::of(&request).unwrap();
        let mut item: Item = json!({"pk": {"S": "VERSIONS"}, "status": {"S": "running"}, "until": {"N": "9"}})
            .as_object()
            .unwrap()
            .clone();
        let holds = |condition: &str, item: Option<&Item>| terms.hold(condition, item).unwrap();
        assert!(holds("attribute_exists(pk) AND (attribute_not_exists(x) OR x < :n)", Some(&item)));
        assert!(holds("until < :n AND #s IN (:p, :r) AND begins_with(pk, :p)", Some(&item)));
        assert!(!holds("x < :n", Some(&item)) && !holds("until >= :n", Some(&item)));
        assert!(holds("attribute_not_exists(pk)", None) && !holds("fence = :n", None));
        terms
            .apply("SET a = :n, until = if_not_exists(until, :one) REMOVE status ADD fence :one, jobs :j", &mut item)
            .unwrap();
        assert_eq!(
            Value::Object(item.clone()),
            json!({"pk": {"S": "VERSIONS"}, "a": {"N": "10"}, "until": {"N": "9"}, "fence": {"N": "1"}, "jobs": {"SS": ["j"]}})
        );
        terms.apply("DELETE jobs :j", &mut item).unwrap();
        assert!(!item.contains_key("jobs"));
    }

    #[test]
    fn unknown_expressions_and_unused_terms_are_refused() {
        let request = json!({"ConditionExpression": "pk = :p", "ExpressionAttributeValues": {":p": {"S": "x"}}});
        let terms = Terms::of(&request).unwrap();
        for unknown in ["size(pk) > :p", "pk BETWEEN :p AND :p", "pk = :missing", "pk = :p)", "pk ="] {
            assert!(terms.hold(unknown, None).is_err(), "{unknown}");
        }
        let mut item = Item::new();
        for unknown in ["SET a = a + :p", "SET pk = :p", "SET a = list_append(a, :p)", "ADD a :p", "MERGE a :p"] {
            assert!(terms.apply(unknown, &mut item).is_err(), "{unknown}");
        }
        let unused = json!({"ConditionExpression": "pk = :p", "ExpressionAttributeValues": {":q": {"S": "x"}}});
        assert!(Terms::of(&unused).is_err());
    }
}

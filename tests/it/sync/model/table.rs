//! As much of DynamoDB's expressions as the registry speaks. What it does not know, it refuses loudly.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

pub(super) type Item = Map<String, Value>;

/// Names and values that stand in an expression for others.
pub(super) struct Terms<'a> {
    names: &'a Value,
    values: &'a Value,
}

impl<'a> Terms<'a> {
    /// Of a request.
    pub(super) fn of(request: &'a Value) -> Self {
        Self { names: &request["ExpressionAttributeNames"], values: &request["ExpressionAttributeValues"] }
    }

    fn name(&self, word: &str) -> String {
        if word.starts_with('#') { self.names[word].as_str().unwrap().to_owned() } else { word.to_owned() }
    }

    fn value(&self, word: &str, item: Option<&Item>) -> Option<Value> {
        if word.starts_with(':') {
            return Some(self.values.get(word).unwrap_or_else(|| panic!("{word} has no value")).clone());
        }
        item?.get(&self.name(word)).cloned()
    }

    /// Whether a condition holds of an item, or of none.
    pub(super) fn hold(&self, condition: &str, item: Option<&Item>) -> bool {
        let words = words(condition);
        let mut reader = Reader { terms: self, words: &words, at: 0, item };
        let holds = reader.any();
        assert_eq!(reader.at, words.len(), "not understood: {condition}");
        holds
    }

    /// Makes an update.
    pub(super) fn apply(&self, update: &str, item: &mut Item) {
        let before = item.clone();
        let mut verb = String::new();
        let mut clause = Vec::new();
        let mut clauses = Vec::new();
        let mut depth = 0;
        for word in words(update).into_iter().chain(["END".to_owned()]) {
            match word.as_str() {
                "SET" | "REMOVE" | "ADD" | "DELETE" | "END" => {
                    if !clause.is_empty() {
                        clauses.push((verb.clone(), std::mem::take(&mut clause)));
                    }
                    verb = word;
                    continue;
                }
                "," if depth == 0 => {
                    clauses.push((verb.clone(), std::mem::take(&mut clause)));
                    continue;
                }
                "(" => depth += 1,
                ")" => depth -= 1,
                _ => {}
            }
            clause.push(word);
        }
        for (verb, clause) in clauses {
            let name = self.name(&clause[0]);
            let clause: Vec<&str> = clause.iter().map(String::as_str).collect();
            match (verb.as_str(), &clause[1..]) {
                ("SET", ["=", value]) => {
                    item.insert(name, self.value(value, Some(&before)).unwrap());
                }
                ("SET", ["=", "if_not_exists", "(", kept, ",", value, ")"]) => {
                    let value = before.get(&self.name(kept)).cloned().or_else(|| self.value(value, None)).unwrap();
                    item.insert(name, value);
                }
                ("REMOVE", []) => {
                    item.remove(&name);
                }
                ("ADD" | "DELETE", [value]) => {
                    let value = self.value(value, None).unwrap();
                    match change(before.get(&name), &verb, &value) {
                        Some(changed) => item.insert(name, changed),
                        None => item.remove(&name),
                    };
                }
                _ => panic!("not understood: {update}"),
            }
        }
    }
}

fn change(old: Option<&Value>, verb: &str, by: &Value) -> Option<Value> {
    if let Some(by) = by["N"].as_str() {
        let old: i64 = old.map_or(0, |old| old["N"].as_str().unwrap().parse().unwrap());
        return Some(json!({"N": (old + by.parse::<i64>().unwrap()).to_string()}));
    }
    let set = |value: &Value| -> BTreeSet<String> {
        value["SS"].as_array().unwrap().iter().map(|one| one.as_str().unwrap().to_owned()).collect()
    };
    let (old, by) = (old.map(set).unwrap_or_default(), set(by));
    let changed: Vec<&String> = if verb == "ADD" { old.union(&by).collect() } else { old.difference(&by).collect() };
    (!changed.is_empty()).then(|| json!({"SS": changed}))
}

fn words(expression: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut open = false;
    for letter in expression.chars() {
        let kind = letter.is_alphanumeric() || matches!(letter, '_' | '#' | ':' | '.' | '-');
        let closes = matches!(letter, '=' | '>') && words.last().is_some_and(|word| word == "<" || word == ">");
        if kind && open || closes {
            words.last_mut().unwrap().push(letter);
        } else if !letter.is_whitespace() {
            words.push(letter.to_string());
        }
        open = kind;
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
    fn next(&mut self) -> &str {
        self.at += 1;
        &self.words[self.at - 1]
    }

    fn take(&mut self, word: &str) -> bool {
        let taken = self.words.get(self.at).is_some_and(|next| next == word);
        self.at += usize::from(taken);
        taken
    }

    fn any(&mut self) -> bool {
        let mut holds = self.all();
        while self.take("OR") {
            holds |= self.all();
        }
        holds
    }

    fn all(&mut self) -> bool {
        let mut holds = self.one();
        while self.take("AND") {
            holds &= self.one();
        }
        holds
    }

    fn one(&mut self) -> bool {
        if self.take("(") {
            let holds = self.any();
            assert!(self.take(")"));
            return holds;
        }
        let word = self.next().to_owned();
        match word.as_str() {
            "attribute_exists" | "attribute_not_exists" => {
                let name = self.argument();
                let exists = self.item.is_some_and(|item| item.contains_key(&self.terms.name(&name)));
                exists == (word == "attribute_exists")
            }
            "begins_with" => {
                assert!(self.take("("));
                let (name, _, prefix) = (self.next().to_owned(), self.next().to_owned(), self.next().to_owned());
                assert!(self.take(")"));
                let text = |word: &str| {
                    self.terms.value(word, self.item).and_then(|value| Some(value["S"].as_str()?.to_owned()))
                };
                text(&name).zip(text(&prefix)).is_some_and(|(text, prefix)| text.starts_with(&prefix))
            }
            _ => self.compared(&word),
        }
    }

    fn argument(&mut self) -> String {
        assert!(self.take("("));
        let name = self.next().to_owned();
        assert!(self.take(")"));
        name
    }

    fn compared(&mut self, left: &str) -> bool {
        let left = self.terms.value(left, self.item);
        let operator = self.next().to_owned();
        if operator == "IN" {
            assert!(self.take("("));
            let mut found = false;
            loop {
                let one = self.next().to_owned();
                found |= left == self.terms.value(&one, self.item);
                if self.take(")") {
                    return found;
                }
                assert!(self.take(","));
            }
        }
        let right = self.next().to_owned();
        let Some((left, right)) = left.zip(self.terms.value(&right, self.item)) else { return false };
        let order = match (left["N"].as_str(), right["N"].as_str()) {
            (Some(left), Some(right)) => left.parse::<i64>().unwrap().cmp(&right.parse().unwrap()),
            _ if left["S"].is_string() && right["S"].is_string() => left["S"].as_str().cmp(&right["S"].as_str()),
            _ => return operator == "=" && left == right,
        };
        match operator.as_str() {
            "=" => order.is_eq(),
            "<" => order.is_lt(),
            "<=" => order.is_le(),
            ">" => order.is_gt(),
            ">=" => order.is_ge(),
            other => panic!("not understood: {other}"),
        }
    }
}

#[test]
fn expressions_mean_what_they_mean_in_dynamodb() {
    let request = json!({
        "ExpressionAttributeNames": {"#s": "status"},
        "ExpressionAttributeValues": {":r": {"S": "running"}, ":n": {"N": "10"}, ":one": {"N": "1"}, ":j": {"SS": ["j"]},
                                      ":p": {"S": "VER"}}
    });
    let terms = Terms::of(&request);
    let mut item: Item =
        json!({"pk": {"S": "VERSIONS"}, "status": {"S": "running"}, "until": {"N": "9"}}).as_object().unwrap().clone();
    assert!(terms.hold("attribute_exists(pk) AND (attribute_not_exists(x) OR x < :n)", Some(&item)));
    assert!(terms.hold("until < :n AND #s IN (:p, :r) AND begins_with(pk, :p)", Some(&item)));
    assert!(!terms.hold("x < :n", Some(&item)) && !terms.hold("until >= :n", Some(&item)));
    assert!(terms.hold("attribute_not_exists(pk)", None) && !terms.hold("fence = :n", None));
    terms.apply("SET a = :n, until = if_not_exists(until, :one) REMOVE status ADD fence :one, jobs :j", &mut item);
    assert_eq!(
        Value::Object(item.clone()),
        json!({"pk": {"S": "VERSIONS"}, "a": {"N": "10"}, "until": {"N": "9"}, "fence": {"N": "1"}, "jobs": {"SS": ["j"]}})
    );
    terms.apply("DELETE jobs :j", &mut item);
    assert!(!item.contains_key("jobs"));
}

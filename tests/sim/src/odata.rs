//! The part of OData that the two APIs accept: the grammar of `$filter`, and the numbers of `$top` and `$skip`.

use std::cmp::Ordering;

use jiff::Timestamp;

/// The type of a field, which decides the literals that it may be compared with.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FieldType {
    Time,
    Text,
    Enumeration(&'static [&'static str]),
}

/// A field that may be filtered on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) kind: FieldType,
}

/// A field's value in a record, or a literal that it is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FieldValue {
    Time(Timestamp),
    Text(Option<String>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Eq,
    Ne,
    Ge,
    Gt,
    Le,
    Lt,
}

/// A parsed `$filter` expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Filter {
    And(Box<Filter>, Box<Filter>),
    Or(Box<Filter>, Box<Filter>),
    Compare(Condition),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    field: &'static str,
    operator: Operator,
    literal: FieldValue,
    /// Members of enumerations are compared without regard to case.
    is_enumeration: bool,
}

impl Filter {
    /// Parses a decoded `$filter`. The error is the service's own message.
    pub(crate) fn parse(text: &str, fields: &[Field]) -> Result<Self, String> {
        let tokens = tokenize(text)?;
        let mut parser = Parser { tokens: &tokens, at: 0, fields, text, depth: 0 };
        let filter = parser.or_expression()?;
        if parser.at < tokens.len() {
            return Err(parser.syntax());
        }
        Ok(filter)
    }

    /// True if the filter selects a record. `field` returns the record's value of a field by name.
    pub(crate) fn matches(&self, field: &impl Fn(&str) -> FieldValue) -> bool {
        match self {
            Self::And(left, right) => left.matches(field) && right.matches(field),
            Self::Or(left, right) => left.matches(field) || right.matches(field),
            Self::Compare(condition) => condition.matches(&field(condition.field)),
        }
    }
}

impl Condition {
    fn matches(&self, value: &FieldValue) -> bool {
        let equal = match (value, &self.literal) {
            (FieldValue::Time(value), FieldValue::Time(literal)) => {
                let order = value.cmp(literal);
                return match self.operator {
                    Operator::Eq => order == Ordering::Equal,
                    Operator::Ne => order != Ordering::Equal,
                    Operator::Ge => order != Ordering::Less,
                    Operator::Gt => order == Ordering::Greater,
                    Operator::Le => order != Ordering::Greater,
                    Operator::Lt => order == Ordering::Less,
                };
            }
            (FieldValue::Text(Some(value)), FieldValue::Text(Some(literal))) if self.is_enumeration => {
                value.eq_ignore_ascii_case(literal)
            }
            (value, literal) => value == literal,
        };
        (self.operator == Operator::Eq) == equal
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Open,
    Close,
    Word(String),
    Quoted(String),
}

fn tokenize(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(&next) = chars.peek() {
        match next {
            ' ' => {
                chars.next();
            }
            '(' | ')' => {
                chars.next();
                tokens.push(if next == '(' { Token::Open } else { Token::Close });
            }
            '\'' => {
                chars.next();
                let mut value = String::new();
                loop {
                    match chars.next() {
                        Some('\'') if chars.peek() == Some(&'\'') => {
                            chars.next();
                            value.push('\'');
                        }
                        Some('\'') => break,
                        Some(other) => value.push(other),
                        None => return Err(format!("There is an unterminated string literal in '{text}'.")),
                    }
                }
                tokens.push(Token::Quoted(value));
            }
            _ => {
                let mut word = String::new();
                while let Some(&other) = chars.peek() {
                    if matches!(other, ' ' | '(' | ')' | '\'') {
                        break;
                    }
                    word.push(other);
                    chars.next();
                }
                tokens.push(Token::Word(word));
            }
        }
    }
    Ok(tokens)
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    fields: &'a [Field],
    text: &'a str,
    depth: usize,
}

impl Parser<'_> {
    fn syntax(&self) -> String {
        format!("Syntax error: character or token {} is not valid in '{}'.", self.at, self.text)
    }

    fn next(&mut self) -> Option<&Token> {
        let token = self.tokens.get(self.at);
        self.at += 1;
        token
    }

    fn consume_word(&mut self, word: &str) -> bool {
        let found = matches!(self.tokens.get(self.at), Some(Token::Word(next)) if next == word);
        self.at += usize::from(found);
        found
    }

    fn or_expression(&mut self) -> Result<Filter, String> {
        let mut left = self.and_expression()?;
        while self.consume_word("or") {
            left = Filter::Or(Box::new(left), Box::new(self.and_expression()?));
        }
        Ok(left)
    }

    fn and_expression(&mut self) -> Result<Filter, String> {
        let mut left = self.condition()?;
        while self.consume_word("and") {
            left = Filter::And(Box::new(left), Box::new(self.condition()?));
        }
        Ok(left)
    }

    fn condition(&mut self) -> Result<Filter, String> {
        if self.tokens.get(self.at) == Some(&Token::Open) {
            self.depth += 1;
            if self.depth > 50 {
                return Err("The node count limit has been exceeded.".to_owned());
            }
            self.at += 1;
            let inner = self.or_expression()?;
            self.depth -= 1;
            return if self.next() == Some(&Token::Close) { Ok(inner) } else { Err(self.syntax()) };
        }
        let Some(Token::Word(name)) = self.next().cloned() else { return Err(self.syntax()) };
        let Some(field) = self.fields.iter().find(|field| field.name == name).copied() else {
            return Err(format!(
                "Could not find a property named '{name}' on type 'microsoft.graph.security.incident'."
            ));
        };
        let operator = match self.next() {
            Some(Token::Word(word)) => match word.as_str() {
                "eq" => Operator::Eq,
                "ne" => Operator::Ne,
                "ge" => Operator::Ge,
                "gt" => Operator::Gt,
                "le" => Operator::Le,
                "lt" => Operator::Lt,
                _ => return Err(self.syntax()),
            },
            _ => return Err(self.syntax()),
        };
        let Some(token) = self.next().cloned() else { return Err(self.syntax()) };
        let literal = parse_literal(field, operator, token)?;
        let is_enumeration = matches!(field.kind, FieldType::Enumeration(_));
        Ok(Filter::Compare(Condition { field: field.name, operator, literal, is_enumeration }))
    }
}

fn parse_literal(field: Field, operator: Operator, token: Token) -> Result<FieldValue, String> {
    let incompatible = |found: &str| {
        let wanted = match field.kind {
            FieldType::Time => "Edm.DateTimeOffset",
            FieldType::Text | FieldType::Enumeration(_) => "Edm.String",
        };
        Err(format!(
            "A binary operator with incompatible types was detected. Found operand types '{wanted}' and '{found}' for \
             operator kind '{operator:?}'."
        ))
    };
    match (field.kind, token) {
        (FieldType::Time, Token::Word(word)) => match parse_timestamp(&word) {
            Some(at) => Ok(FieldValue::Time(at)),
            None => incompatible("Edm.Untyped"),
        },
        (FieldType::Time, _) => incompatible("Edm.String"),
        (FieldType::Text | FieldType::Enumeration(_), _) if !matches!(operator, Operator::Eq | Operator::Ne) => {
            Err(format!("The operator '{operator:?}' is not supported for '{}'.", field.name))
        }
        (FieldType::Text, Token::Word(word)) if word == "null" => Ok(FieldValue::Text(None)),
        (FieldType::Text, Token::Quoted(value)) => Ok(FieldValue::Text(Some(value))),
        (FieldType::Enumeration(values), Token::Quoted(value)) => {
            if values.iter().any(|known| known.eq_ignore_ascii_case(&value)) {
                Ok(FieldValue::Text(Some(value)))
            } else {
                Err(format!("The string '{value}' is not a valid enumeration type constant."))
            }
        }
        _ => incompatible("Edm.Untyped"),
    }
}

/// An `Edm.DateTimeOffset`: date, `T`, time, at most seven digits of fraction, and an offset.
fn parse_timestamp(word: &str) -> Option<Timestamp> {
    let (date, time) = word.split_once('T')?;
    if date.len() != 10 {
        return None;
    }
    let digits = time.split_once('.').map_or(0, |(_, rest)| rest.bytes().take_while(u8::is_ascii_digit).count());
    if digits > 7 || time.len() < 9 {
        return None;
    }
    word.parse().ok()
}

/// Parses a non-negative whole number, as `$top` and `$skip` require.
pub(crate) fn parse_count(name: &str, value: &str) -> Result<usize, String> {
    let plain = !value.is_empty() && value.bytes().all(|digit| digit.is_ascii_digit());
    plain.then(|| value.parse().ok()).flatten().ok_or_else(|| format!("Invalid value '{value}' for {name} query option found. The {name} query option requires a non-negative integer value."))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: &[Field] = &[
        Field { name: "lastUpdateDateTime", kind: FieldType::Time },
        Field { name: "assignedTo", kind: FieldType::Text },
        Field { name: "status", kind: FieldType::Enumeration(&["active", "resolved"]) },
    ];

    fn holds(filter: &str, at: &str, assigned_to: Option<&str>, status: &str) -> bool {
        let filter = Filter::parse(filter, FIELDS).unwrap();
        filter.matches(&|name| match name {
            "lastUpdateDateTime" => FieldValue::Time(at.parse().unwrap()),
            "assignedTo" => FieldValue::Text(assigned_to.map(str::to_owned)),
            _ => FieldValue::Text(Some(status.to_owned())),
        })
    }

    #[test]
    fn time_windows_are_exact_to_100_nanoseconds() {
        let window = "lastUpdateDateTime ge 2026-11-22T09:00:00Z and lastUpdateDateTime lt 2026-11-22T09:00:01Z";
        assert!(holds(window, "2026-11-22T09:00:00Z", None, "active"));
        assert!(holds(window, "2026-11-22T09:00:00.9999999Z", None, "active"));
        assert!(!holds(window, "2026-11-22T09:00:01Z", None, "active"));
        assert!(!holds(window, "2026-11-22T08:59:59.9999999Z", None, "active"));
    }

    #[test]
    fn and_binds_closer_than_or() {
        let filter = "status eq 'resolved' or status eq 'active' and assignedTo eq 'a'";
        assert!(holds(filter, "2026-01-01T00:00:00Z", None, "resolved"));
        assert!(!holds(filter, "2026-01-01T00:00:00Z", None, "active"));
        let filter = "(status eq 'resolved' or status eq 'active') and assignedTo eq 'a'";
        assert!(!holds(filter, "2026-01-01T00:00:00Z", None, "resolved"));
        assert!(holds(filter, "2026-01-01T00:00:00Z", Some("a"), "active"));
    }

    #[test]
    fn quotes_are_doubled_and_null_is_not_text() {
        assert!(holds("assignedTo eq 'O''Brien (a)'", "2026-01-01T00:00:00Z", Some("O'Brien (a)"), "active"));
        assert!(holds("assignedTo eq null", "2026-01-01T00:00:00Z", None, "active"));
        assert!(holds("assignedTo ne 'x'", "2026-01-01T00:00:00Z", None, "active"));
        assert!(!holds("assignedTo ne null", "2026-01-01T00:00:00Z", None, "active"));
    }

    #[test]
    fn unsupported_filters_are_refused() {
        for bad in [
            "",
            "status",
            "status eq",
            "status eq active",
            "status eq 'nonsense'",
            "status ge 'active'",
            "status EQ 'active'",
            "status eq 'active",
            "(status eq 'active'",
            "status eq 'active')",
            "status eq 'active' status eq 'active'",
            "displayName eq 'x'",
            "contains(displayName,'x')",
            "not status eq 'active'",
            "lastUpdateDateTime ge '2026-11-22T09:00:00Z'",
            "lastUpdateDateTime ge 2026-11-22",
            "lastUpdateDateTime ge 2026-11-22T09:00:00",
            "lastUpdateDateTime ge 2026-11-22T09:00:00.12345678Z",
            "lastUpdateDateTime ge 2026-11-22T09:00:00 00:00",
        ] {
            assert!(Filter::parse(bad, FIELDS).is_err(), "{bad}");
        }
    }

    #[test]
    fn counts_are_unsigned_decimal_numbers() {
        assert_eq!(parse_count("$top", "50"), Ok(50));
        for bad in ["", "-1", "+5", "1.0", "x"] {
            assert!(parse_count("$top", bad).is_err(), "{bad}");
        }
    }
}

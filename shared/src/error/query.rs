//! The reasons why Microsoft refuses a hunting query itself.

/// The reason why Microsoft refuses a hunting query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryFailure {
    /// The query, or its time span, is not understood, or names a table that the tenant lacks.
    Invalid,
    /// The result, or the run, is larger than Microsoft allows.
    ResultTooLarge,
    /// The query ran out of Microsoft's time.
    Timeout,
}

/// Words of a response about the query's text, which may quote anything after them.
const OF_THE_TEXT: [&str; 4] = ["syntax error", "semantic error", "failed to resolve", "invalid query"];

/// Words of a response about a limit of the result or of the run.
const OF_A_LIMIT: [&str; 5] =
    ["allowed result size", "allowed limits", "result_set_too_large", "runaway_query", "too large"];

/// Words of a response about the time.
const OF_THE_TIME: [&str; 5] = ["timeout", "timed out", "time limit", "time-out", "allowed time"];

impl QueryFailure {
    /// Reads the reason from the text of Microsoft's 400. A text that names no limit is about the query.
    pub fn of(message: &str) -> Self {
        let message = message.to_ascii_lowercase();
        let has = |words: &[&str]| words.iter().any(|word| message.contains(word));
        if has(&OF_THE_TEXT) {
            Self::Invalid
        } else if has(&OF_A_LIMIT) {
            Self::ResultTooLarge
        } else if has(&OF_THE_TIME) {
            Self::Timeout
        } else {
            Self::Invalid
        }
    }

    /// The interface's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "query_invalid",
            Self::ResultTooLarge => "result_too_large",
            Self::Timeout => "query_timeout",
        }
    }

    /// The text for a caller.
    pub(super) fn detail(self) -> &'static str {
        match self {
            Self::Invalid => "Microsoft does not accept the query.",
            Self::ResultTooLarge => "The result, or the run, is larger than Microsoft allows. Ask for fewer rows.",
            Self::Timeout => "The query takes longer than Microsoft allows. Narrow its time span.",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_distinguished_from_mistakes_in_the_query() {
        for (message, expected) in [
            // Microsoft's documentation has this text for a result above 50 MB.
            (
                "Query execution has exceeded the allowed result size. Optimize your query by limiting the number of \
                 results and try again.",
                QueryFailure::ResultTooLarge,
            ),
            (
                "Query execution has exceeded the allowed limits. The query execution was preempted. This could possibly \
                 be due to high CPU and/or memory resource consumption.",
                QueryFailure::ResultTooLarge,
            ),
            ("The query exceeded the timeout period.", QueryFailure::Timeout),
            ("Failed to resolve table or column expression named 'timeout'.", QueryFailure::Invalid),
            ("Syntax error at 'too large'", QueryFailure::Invalid),
            ("", QueryFailure::Invalid),
        ] {
            assert_eq!(QueryFailure::of(message), expected, "{message}");
        }
    }
}

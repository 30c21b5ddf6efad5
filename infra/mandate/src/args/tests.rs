use clap::CommandFactory;

use super::*;

#[test]
fn help_fits_on_a_screen_and_names_every_command() {
    let help = Cli::command().render_help().to_string();
    let widest = help.lines().map(|line| line.chars().count()).max();
    assert!(help.lines().count() <= 24 && widest <= Some(80), "{} lines, {widest:?}", help.lines().count());
    let words: Vec<_> = help.split(|letter: char| !letter.is_alphanumeric()).collect();
    for command in Cli::command().get_subcommands() {
        assert!(words.contains(&command.get_name()), "{}", command.get_name());
    }
}

#[test]
fn every_command_has_an_example_that_parses() {
    Cli::command().debug_assert();
    for command in Cli::command().get_subcommands() {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let example = help.split_once("  mandate ").map(|(_, rest)| rest.split("\n\n").next().unwrap_or(rest));
        if command.get_name() == "mcp" {
            assert!(help.contains("\"args\": [\"mcp\""), "{help}");
            continue;
        }
        let Some(example) = example else { panic!("{} has no example", command.get_name()) };
        let first = example.replace("\\\n", " ");
        let first = first.lines().next().unwrap().split('>').next().unwrap();
        let words = split(first);
        let parsed = Cli::try_parse_from(std::iter::once("mandate".to_owned()).chain(words));
        assert!(parsed.is_ok(), "{first}: {}", parsed.unwrap_err());
    }
}

/// Splits a command as a shell does, as far as the examples need it.
fn split(line: &str) -> Vec<String> {
    let quoted = line.split('"').enumerate();
    let parts = quoted.map(|(index, part)| match index % 2 {
        0 => part.split_whitespace().map(str::to_owned).collect::<Vec<_>>(),
        _ => vec![part.to_owned()],
    });
    parts.flatten().collect()
}

#[test]
fn help_is_a_command_too() {
    for words in [&["help"][..], &["help", "tenants"]] {
        let shown = Cli::try_parse_from(["mandate"].iter().chain(words)).unwrap_err();
        assert_eq!(shown.kind(), clap::error::ErrorKind::DisplayHelp, "{words:?}");
    }
}

/// The commands of `mandate` in a page: pieces of code in its sentences, and lines of its blocks.
fn commands(page: &str) -> Vec<String> {
    let joined = page.replace("\\\n", " ");
    let spans = joined.split('`').skip(1).step_by(2).filter(|span| !span.contains('\n'));
    let lines = joined.lines().flat_map(|line| line.split("; ")).map(|line| line.trim_start_matches("do ").trim());
    let commands = spans.chain(lines).filter_map(|code| code.strip_prefix("mandate ")).map(str::to_owned);
    commands.filter(|command| command.starts_with(|letter: char| letter.is_ascii_lowercase())).collect()
}

#[test]
fn commands_in_the_guides_exist_with_their_options() {
    let pages = [
        "infra/README.md",
        "infra/runbook.md",
        "infra/acceptance.md",
        "infra/entra/README.md",
        "README.md",
        "STATUS.md",
    ];
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let mut found = 0;
    for page in pages {
        for command in commands(&std::fs::read_to_string(root.join(page)).unwrap()) {
            // A span ends with its command; a line may go on with a comment, a pipe or a file.
            let code = command.split([';', '#', '>']).next().unwrap().replace('\'', "\"").replace(" \\| ", " ");
            let mut words = vec!["mandate".to_owned()];
            for word in split(&code) {
                let option = words.last().filter(|before| before.starts_with("--")).map(String::as_str);
                let word = match (option, word.as_str()) {
                    (None, "…") => continue,
                    (Some("--redirect-uri"), _) => "https://mandate.example/consent/callback",
                    (_, "A" | "ID" | "TENANT" | "HUNT_ID" | "KEY") => "11111111-2222-4333-8444-555555555555",
                    (_, "SHELL") => "bash",
                    (_, "LAST") => "2026-11-22",
                    (_, "$status") => "active",
                    (_, word) => word,
                };
                words.push(word.to_owned());
            }
            if let Err(error) = Cli::try_parse_from(&words) {
                use clap::error::ErrorKind::{
                    DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, MissingRequiredArgument, ValueValidation,
                };
                // A sentence may name a command without its arguments, and `…` stands for a value.
                let kinds =
                    [DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, MissingRequiredArgument, ValueValidation];
                assert!(kinds.contains(&error.kind()), "{page}: {command}: {error}");
            }
            found += 1;
        }
    }
    assert!(found > 50, "{found}");
}

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

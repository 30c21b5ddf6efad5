//! Completion scripts and the manual page, for shells.

use std::io::{self, Write};

use clap::CommandFactory;
use clap_complete::Shell;

use crate::{args::Cli, problem::Problem};

/// Prints the completion script of a shell.
pub(crate) fn completions(shell: Shell) -> Result<(), Problem> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "mandate", &mut script);
    print(&script)
}

/// Prints the manual page: the program, then each command.
pub(crate) fn man() -> Result<(), Problem> {
    let mut page = Vec::new();
    let mut command = Cli::command();
    command.build();
    let failed = |error: io::Error| Problem::new("internal", format!("The manual page cannot be made: {error}."));
    let man = clap_mangen::Man::new(command.clone());
    man.render_title(&mut page).map_err(failed)?;
    man.render_name_section(&mut page).map_err(failed)?;
    man.render_synopsis_section(&mut page).map_err(failed)?;
    man.render_description_section(&mut page).map_err(failed)?;
    man.render_options_section(&mut page).map_err(failed)?;
    for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
        writeln!(page, ".SH \"MANDATE {}\"", subcommand.get_name().to_uppercase()).map_err(failed)?;
        let man = clap_mangen::Man::new(subcommand.clone());
        man.render_description_section(&mut page).map_err(failed)?;
        man.render_synopsis_section(&mut page).map_err(failed)?;
        man.render_options_section(&mut page).map_err(failed)?;
        man.render_extra_section(&mut page).map_err(failed)?;
    }
    print(&page)
}

fn print(bytes: &[u8]) -> Result<(), Problem> {
    match io::stdout().lock().write_all(bytes) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Problem::new("internal", format!("The output cannot be written: {error}.")))
        }
        _ => Ok(()),
    }
}

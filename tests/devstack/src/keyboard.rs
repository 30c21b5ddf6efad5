//! What is typed while `cargo dev` runs.

use std::io::{BufRead as _, IsTerminal as _};

use tokio::sync::mpsc::{Receiver, channel};

/// The lines of standard input. There are none where reading would stop us: in the background of a terminal.
pub(crate) fn lines() -> Receiver<String> {
    let (sender, receiver) = channel(1);
    let input = std::io::stdin();
    if input.is_terminal() && is_in_background() {
        return receiver;
    }
    // A thread of its own: the runtime would wait for the end of one of its threads that reads.
    std::thread::spawn(move || {
        for line in input.lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Whether the terminal belongs to another process group; only Linux says so.
fn is_in_background() -> bool {
    std::fs::read_to_string("/proc/self/stat").is_ok_and(|stat| is_of_another_group(&stat))
}

/// See proc(5): after the name, which may hold anything, come state, parent, group, session, terminal, and the terminal's
/// group.
fn is_of_another_group(stat: &str) -> bool {
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    matches!(fields[..], [_, _, group, _, _, foreground, ..] if group != foreground)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_foreground_is_told_from_the_background() {
        assert!(!is_of_another_group("12 (dev) stack) R 11 12 10 34816 12 4194304"));
        assert!(is_of_another_group("12 (devstack) R 11 12 10 34816 10 4194304"));
        assert!(!is_of_another_group("12 (devstack) R"));
    }
}

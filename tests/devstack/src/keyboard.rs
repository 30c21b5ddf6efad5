//! Keyboard input of `cargo dev`.

use std::io::{BufRead as _, IsTerminal as _};

use tokio::sync::mpsc::{Receiver, channel};

/// Returns the lines of standard input. In the background of a terminal there are none, because reading would stop the
/// process there.
pub(crate) fn lines() -> Receiver<String> {
    let (sender, receiver) = channel(1);
    let input = std::io::stdin();
    if input.is_terminal() && is_in_background() {
        return receiver;
    }
    // A thread of its own, because the runtime waits for its blocking threads when it ends.
    std::thread::spawn(move || {
        for line in input.lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Returns `true` if the terminal belongs to another process group. Only Linux provides this.
fn is_in_background() -> bool {
    std::fs::read_to_string("/proc/self/stat").is_ok_and(|stat| is_of_another_group(&stat))
}

/// Parses `/proc/self/stat`. After the name, which may contain any character, it lists the state, parent, process group,
/// session, terminal and the terminal's process group; see proc(5).
fn is_of_another_group(stat: &str) -> bool {
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    matches!(fields[..], [_, _, group, _, _, foreground, ..] if group != foreground)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn background_process_is_recognised() {
        assert!(!is_of_another_group("12 (dev) stack) R 11 12 10 34816 12 4194304"));
        assert!(is_of_another_group("12 (devstack) R 11 12 10 34816 10 4194304"));
        assert!(!is_of_another_group("12 (devstack) R"));
    }
}

//! The files of the page.

use crate::console::assets::FILES;

#[test]
fn page_has_no_inline_script_and_builds_no_markup() {
    for (path, _, content) in FILES {
        for forbidden in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "setHTML",
            "eval(",
            "new Function",
            "DOMParser",
            "javascript:",
            "<style",
            " style=",
            "<script>",
            "http://",
            "https://",
        ] {
            let is_namespace = path == "icon.svg" && forbidden == "http://";
            assert!(is_namespace || !content.contains(forbidden), "{path}: {forbidden}");
        }
    }
    let index = FILES[0].2;
    let handler = index.split_whitespace().find(|word| word.starts_with("on") && word.contains('='));
    assert_eq!(handler, None);
}

#[test]
fn sentences_of_a_problem_are_shown_as_text_from_outside() {
    let lines = FILES.iter().flat_map(|(name, _, content)| content.lines().map(move |line| (name, line)));
    let shown: Vec<_> = lines.filter(|(_, line)| line.contains("problem.message")).collect();
    assert_eq!(shown.len(), 4, "{shown:?}");
    for (name, line) in shown {
        assert!(line.contains("outside(problem.message)"), "{name}: {line}");
    }
    let (_, _, parts) = FILES.into_iter().find(|(name, ..)| *name == "parts.js").unwrap();
    let quoted = parts.split_once("export function quoted").unwrap().1.split_once("\n}").unwrap().0;
    assert!(quoted.contains("outside(part)") && quoted.contains("outsideText(part)"), "{quoted}");
}

#[test]
fn every_imported_script_is_served() {
    for (path, _, content) in
        FILES.iter().filter(|(path, ..)| path.rsplit_once('.').is_some_and(|(_, kind)| kind == "js"))
    {
        for import in content.lines().filter(|line| line.starts_with("import ")) {
            let file = import.split('"').nth(1).unwrap().trim_start_matches("./");
            assert!(FILES.iter().any(|(path, ..)| *path == file), "{path} imports {file}");
        }
    }
}

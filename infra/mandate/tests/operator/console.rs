//! `mandate console` and the browser that it starts.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
};
use url::Url;

use crate::{
    api::{Api, program},
    hunting::interrupt,
};

/// A stand-in for the desktop's opener: it records its arguments, one a line.
const OPENER: &str = "#!/bin/sh\nprintf '%s\\n' \"$0\" \"$@\" > \"$0.part\" && mv \"$0.part\" \"$0.arguments\"\n";

/// A folder with the opener, which is empty before.
fn opener(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(folder.join("temporary")).unwrap();
    let file = folder.join("xdg-open");
    std::fs::write(&file, OPENER).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
    folder
}

/// Starts a console whose opener is in `folder`. The results are the process, its address, and what the opener was
/// started with.
async fn start(api: &Api, folder: &Path) -> (Child, String, Vec<String>) {
    let mut command = program(&["--api", &api.url, "console", "--port", "0"]);
    command.env("PATH", format!("{}:/usr/bin:/bin", folder.display())).env("TMPDIR", folder.join("temporary"));
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let printed: serde_json::Value = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
    let recorded = folder.join("xdg-open.arguments");
    while !recorded.exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let arguments = std::fs::read_to_string(recorded).unwrap().lines().map(str::to_owned).collect();
    (child, printed["address"].as_str().unwrap().to_owned(), arguments)
}

async fn request(address: &str, headers: &str) -> String {
    let rest = address.strip_prefix("http://").unwrap();
    let (host, target) = rest.split_once('/').unwrap();
    let mut connection = TcpStream::connect(host).await.unwrap();
    let head = format!("GET /{target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{headers}\r\n");
    connection.write_all(head.as_bytes()).await.unwrap();
    let mut response = String::new();
    connection.read_to_string(&mut response).await.unwrap();
    response
}

#[tokio::test]
async fn token_is_in_a_private_file_and_no_argument() {
    let api = Api::of(Vec::new()).await;
    let folder = opener("console-opens");
    let (child, address, arguments) = start(&api, &folder).await;
    let (_, token) = address.split_once("?token=").unwrap();
    assert!(arguments.iter().all(|argument| !argument.contains(token)), "{arguments:?}");

    let page = PathBuf::from(&arguments[1]);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&page), mode(page.parent().unwrap())), (0o600, 0o700));
    let html = std::fs::read_to_string(&page).unwrap();
    let (_, opened) = html.split_once("content=\"0; url=").unwrap();
    let (opened, _) = opened.split_once('"').unwrap();
    let (printed, named) = (Url::parse(&address).unwrap(), Url::parse(opened).unwrap());
    assert_eq!((named.port(), named.query()), (printed.port(), printed.query()));
    let name = named.host_str().unwrap().strip_prefix("mandate-").and_then(|name| name.strip_suffix(".localhost"));
    assert_eq!(name.map(str::len), Some(32), "a name that no service worker is registered for: {html}");

    let headers = "sec-fetch-site: cross-site\r\nsec-fetch-mode: navigate\r\nsec-fetch-dest: document\r\n";
    let response = request(&address, headers).await;
    assert!(response.starts_with("HTTP/1.1 200") && response.contains("set-cookie"), "{response}");
    assert!(!page.parent().unwrap().exists(), "the file is gone with the first use");
    interrupt(child.id().unwrap()).await;
    assert_eq!(child.wait_with_output().await.unwrap().status.code(), Some(0));
}

#[tokio::test]
async fn private_file_goes_with_the_program() {
    let api = Api::of(Vec::new()).await;
    let folder = opener("console-ends");
    let (child, _, arguments) = start(&api, &folder).await;
    assert!(Path::new(&arguments[1]).exists());
    interrupt(child.id().unwrap()).await;
    assert_eq!(child.wait_with_output().await.unwrap().status.code(), Some(0));
    assert_eq!(std::fs::read_dir(folder.join("temporary")).unwrap().count(), 0);
}

#[tokio::test]
async fn each_start_takes_another_port() {
    let api = Api::of(Vec::new()).await;
    let (mut consoles, mut ports) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let mut console = program(&["--api", &api.url, "console", "--no-open"]).spawn().unwrap();
        let mut lines = BufReader::new(console.stdout.take().unwrap()).lines();
        let printed = lines.next_line().await.unwrap().expect("a console beside another one prints its address");
        let printed: serde_json::Value = serde_json::from_str(&printed).unwrap();
        let (origin, _) = printed["address"].as_str().unwrap().split_once("/?token=").unwrap();
        ports.push(origin.rsplit_once(':').unwrap().1.to_owned());
        consoles.push(console);
    }
    assert_ne!(ports[0], ports[1]);
    for console in consoles {
        interrupt(console.id().unwrap()).await;
        assert_eq!(console.wait_with_output().await.unwrap().status.code(), Some(0));
    }
}

/// Ctrl-C is the proper end from the first output on. The program may lose the race only now and then, hence the runs.
#[tokio::test]
async fn interrupt_right_after_the_first_line_is_a_proper_end() {
    let api = Api::of(Vec::new()).await;
    for run in 0..10 {
        let mut child = program(&["--api", &api.url, "console", "--port", "0", "--no-open"]).spawn().unwrap();
        let mut interrupt = Command::new("sh")
            .args(["-c", &format!("read line; kill -INT {}", child.id().unwrap())])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        lines.next_line().await.unwrap().unwrap();
        interrupt.stdin.take().unwrap().write_all(b"\n").await.unwrap();
        assert!(interrupt.wait().await.unwrap().success());
        assert_eq!(child.wait_with_output().await.unwrap().status.code(), Some(0), "run {run}");
    }
}

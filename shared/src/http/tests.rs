use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

/// Calls a server that reads one request, writes `response` after `delay`, and closes the connection.
async fn call(scheme: &str, response: &'static [u8], delay: Duration) -> Result<Vec<u8>> {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("{scheme}://{}/", server.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(async move {
        let (mut connection, _) = server.accept().await.unwrap();
        let _ = connection.read(&mut [0; 4096]).await;
        tokio::time::sleep(delay).await;
        let _ = connection.write_all(response).await;
    });
    let request = HttpClient::default().get(url);
    send(request, Call::ReadKeys, Deadline::within(Duration::from_secs(1), &Clock::system())).await?.bytes().await
}

#[test]
fn no_wait_is_longer_than_a_day() {
    let now = "2026-11-22T10:00:00Z".parse().unwrap();
    let day = 24 * 3600;
    for (text, seconds) in [
        ("7", Some(7)),
        ("86400", Some(day)),
        ("86401", Some(day)),
        ("2147483647", Some(day)),
        ("99999999999999999999", Some(day)),
        ("Sun, 22 Nov 2026 10:01:00 GMT", Some(60)),
        ("Sun, 22 Nov 2026 09:00:00 GMT", Some(0)),
        ("Mon, 22 Nov 2094 10:00:00 GMT", Some(day)),
        ("soon", None),
        ("-5", None),
        ("", None),
    ] {
        assert_eq!(parse_retry_after(text, now).map(|wait| wait.as_secs()), seconds, "{text}");
    }
}

#[test]
fn only_a_hunting_query_may_be_silent_for_three_minutes() {
    assert!(longest_silence(Call::Hunt) > Duration::from_mins(3));
    assert_eq!(longest_silence(Call::ListIncidents), READ_TIMEOUT);
}

#[test]
fn only_identifiers_are_request_ids() {
    for (text, is_id) in [
        ("6f1b8a3e-09c4-4d0e-9a57-5b7e2f6f6a10", true),
        ("|00-0af7651916cd43dd8448eb211c80319c.1_2:3", true),
        ("", false),
        ("a b", false),
        ("<script>", false),
        ("\u{fc}", false),
        (&"a".repeat(129), false),
    ] {
        assert_eq!(is_request_id(text), is_id, "{text}");
    }
}

#[tokio::test]
async fn failed_connections_say_at_which_step() {
    let now = Duration::ZERO;
    let whole = call("http", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", now).await;
    assert_eq!(whole.unwrap(), b"hi");
    let table = [
        (call("https", b"HTTP/1.1 400 Bad Request\r\n\r\n", now).await, Cause::Tls),
        (call("http", b"", now).await, Cause::Closed),
        (call("http", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi", now).await, Cause::Body),
        (call("http", b"", Duration::from_mins(1)).await, Cause::Timeout),
    ];
    for (outcome, expected) in table {
        let Err(Error::Unreachable { call: Call::ReadKeys, cause, .. }) = outcome else { panic!("{outcome:?}") };
        assert_eq!(cause, expected);
    }
}

#[tokio::test]
async fn deadline_moves_with_its_clock() {
    let clock = Clock::by_hand(Timestamp::UNIX_EPOCH);
    let deadline = Deadline::within(Duration::from_mins(10), &clock);
    let sooner = deadline.at_most(Duration::from_mins(5));
    assert!(deadline.left() > Duration::from_mins(9));
    assert!(deadline.run(async { Ok(()) }).await.is_ok());

    clock.advance(SignedDuration::from_mins(6));
    assert_eq!(sooner.left(), Duration::ZERO);
    assert!(deadline.left() > Duration::from_mins(3) && deadline.left() <= Duration::from_mins(4));
    assert_eq!(deadline.reserving(Duration::from_mins(5)).left(), Duration::ZERO);

    let never = std::future::pending::<Result<()>>();
    assert_eq!(sooner.run(never).await, Err(Error::DeadlineExceeded));
}

/// A large row closes them, because each holds the buffer into which it was read.
#[tokio::test]
async fn closed_connections_are_not_used_again() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: Url = format!("http://{}/", server.local_addr().unwrap()).parse().unwrap();
    let (opened, mut opened_so_far) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = server.accept().await {
            opened.send(()).unwrap();
            tokio::spawn(async move {
                while connection.read(&mut [0; 4096]).await.unwrap() > 0 {
                    connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await.unwrap();
                }
            });
        }
    });
    let client = HttpClient::default();
    let mut connections_after = async |request: reqwest::RequestBuilder| {
        let deadline = Deadline::within(Duration::from_secs(9), &Clock::system());
        let body = send(request, Call::ReadKeys, deadline).await.unwrap().bytes().await;
        assert_eq!(body.unwrap(), b"hi");
        std::iter::from_fn(|| opened_so_far.try_recv().ok()).count()
    };
    assert_eq!(connections_after(client.get(url.clone())).await, 1);
    assert_eq!(connections_after(client.clone().get(url.clone())).await, 0, "one connection for all callers");
    let (one, other) = (client.clone(), client.get(url.clone()));
    one.close_connections();
    assert_eq!(connections_after(other).await, 0, "a request that was made before");
    assert_eq!(connections_after(client.get(url)).await, 1);
}

#[tokio::test]
async fn refused_connection_is_logged_without_the_url() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let request = HttpClient::default().get(format!("http://{free}/?code=hidden").parse().unwrap());
    let refused = send(request, Call::ReadKeys, Deadline::within(Duration::from_secs(1), &Clock::system())).await;
    let error = refused.err().unwrap();
    assert!(matches!(error, Error::Unreachable { cause: Cause::Connect, .. }), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("hidden"), "{error:?}");
    assert!(error.to_string().contains("refused"), "{error}");
}

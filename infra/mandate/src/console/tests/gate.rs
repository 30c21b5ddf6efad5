//! The rules that every request must pass.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::json;
use tokio::net::TcpListener;

use super::{Browser, TENANT, changes, start};
use crate::console::{Mode, assets::FILES, listen};

#[tokio::test]
async fn page_is_on_loopback_only() {
    let (listeners, port) = listen(0).await.unwrap();
    let addresses: Vec<_> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
    assert_eq!(addresses[0].ip(), Ipv4Addr::LOCALHOST);
    assert!(addresses.iter().all(|address| address.ip().is_loopback() && address.port() == port), "{addresses:?}");
    assert_eq!(listen(port).await.unwrap_err().code, "port_in_use");
}

/// A browser tries `::1` first for a name of this machine.
#[tokio::test]
async fn port_that_another_program_has_at_the_other_address_is_refused() {
    // A machine without the address has nobody there, either.
    let Ok(other) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await else { return };
    let port = other.local_addr().unwrap().port();
    assert_eq!(listen(port).await.unwrap_err().code, "port_in_use");
}

#[tokio::test]
async fn foreign_hosts_are_refused() {
    let stage = start(Mode::Write).await;
    let browser = stage.enter().await;
    let port = stage.port;
    for host in ["127.0.0.1", "localhost", "[::1]", "LocalHost", &stage.name] {
        let host = format!("{host}:{port}");
        let headers = [("host", host.as_str()), ("cookie", &browser.cookie), ("x-mandate-console", &browser.key)];
        assert_eq!(stage.raw("GET", "/api/tenants", &headers, "").await.status, 200, "{host}");
    }
    stage.calls();
    let foreign = [
        format!("evil.example:{port}"),
        "evil.example".into(),
        "127.0.0.1".into(),
        format!("127.0.0.1:{}", port - 1),
        format!("127.0.0.1:{port}.evil.example"),
        format!("evil.example@127.0.0.1:{port}"),
        format!("localhost.:{port}"),
        format!("mandate-{}.localhost:{port}", "0".repeat(32)),
        format!("x.{}:{port}", stage.name),
        stage.name.clone(),
        format!("127.1:{port}"),
        String::new(),
    ];
    for host in &foreign {
        for target in ["/api/tenants", "/", &stage.file("console.css")] {
            let headers = [("host", host.as_str()), ("cookie", &browser.cookie), ("x-mandate-console", &browser.key)];
            let response = stage.raw("GET", target, &headers, "").await;
            assert!(response.status == 403 || response.status == 400, "{host} {target}: {}", response.status);
        }
    }
    // Two hosts, none, and a target that names another one.
    let ours = stage.host();
    let session = [("cookie", browser.cookie.as_str()), ("x-mandate-console", &browser.key)];
    let two = [&[("host", ours.as_str()), ("host", "evil.example")], session.as_slice()].concat();
    assert_ne!(stage.raw("GET", "/api/tenants", &two, "").await.status, 200);
    assert_ne!(stage.raw("GET", "/api/tenants", &session, "").await.status, 200);
    let absolute = [&[("host", ours.as_str())], session.as_slice()].concat();
    let target = format!("http://evil.example:{port}/api/tenants");
    assert_eq!(stage.raw("GET", &target, &absolute, "").await.code(), "foreign_host");
    assert_eq!(stage.calls(), []);
}

#[tokio::test]
async fn requests_of_other_sites_are_refused() {
    let stage = start(Mode::Write).await;
    let browser = stage.enter().await;
    let host = stage.host();
    let other_port = format!("http://127.0.0.1:{}", stage.port - 1);
    let other_name = format!("http://localhost:{}", stage.port);
    let table = [
        ("origin", "https://evil.example"),
        ("origin", "null"),
        ("origin", ""),
        ("origin", other_port.as_str()),
        // A page under the other name of this host has another origin.
        ("origin", other_name.as_str()),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("sec-fetch-site", "unheard-of"),
    ];
    for (name, value) in table {
        for (method, target, body) in
            [("GET", "/api/tenants", ""), ("GET", "/", ""), ("POST", "/api/invitations", "{}")]
        {
            let headers = [
                ("host", host.as_str()),
                ("cookie", &browser.cookie),
                ("x-mandate-console", &browser.key),
                ("content-type", "application/json"),
                (name, value),
            ];
            let response = stage.raw(method, target, &headers, body).await;
            assert_eq!(response.status, 403, "{method} {target} with {name}: {value}");
        }
    }
    assert_eq!(stage.calls(), []);
}

#[tokio::test]
async fn token_lets_one_browser_in_once() {
    let stage = start(Mode::ReadOnly).await;
    let ours = stage.host();
    let host = [("host", ours.as_str())];
    let address = format!("/?token={}", stage.token);
    assert_eq!(stage.raw("GET", "/?token=", &host, "").await.status, 403);
    assert_eq!(stage.raw("GET", &format!("/?token={}", "0".repeat(64)), &host, "").await.status, 403);
    assert_eq!(stage.raw("HEAD", &address, &host, "").await.status, 405);
    let cross_site = [host[0], ("sec-fetch-site", "cross-site")];
    assert_eq!(stage.raw("GET", &address, &cross_site, "").await.status, 403);

    let response = stage.raw("GET", &address, &host, "").await;
    assert_eq!((response.status, response.header("location")), (303, Some(stage.page.as_str())));
    let cookie = response.header("set-cookie").unwrap();
    for attribute in ["; HttpOnly", "; SameSite=Strict", "; Path=/"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    assert!(cookie.starts_with(&format!("mandate-console-{}=", stage.port)));
    assert!(!cookie.contains(&stage.token) && !response.body.contains(&stage.token));

    // Refused for everybody, also for the browser that was let in.
    let again = stage.raw("GET", &address, &host, "").await;
    assert_eq!((again.status, again.header("set-cookie")), (403, None));
    assert!(again.body.contains("used before"), "{}", again.body);
    let browser = Browser { cookie: cookie.split(';').next().unwrap().into(), ..Browser::default() };
    assert_eq!(stage.send(&browser, "GET", &address, None).await.status, 403);
    assert_eq!(stage.send(&browser, "GET", &stage.page, None).await.status, 200);
    let root = stage.send(&browser, "GET", "/", None).await;
    assert_eq!((root.status, root.header("location")), (303, Some(stage.page.as_str())));
}

/// Another program may have had this port before, and may have left pages, files and a service worker in the browser.
#[tokio::test]
async fn what_another_program_left_in_the_browser_ends() {
    let (stage, other) = (start(Mode::ReadOnly).await, start(Mode::ReadOnly).await);
    assert_ne!(stage.page, other.page, "no path of a file is known before the start");
    let host = stage.host();
    let address = format!("/?token={}", stage.token);
    for destination in ["empty", "serviceworker", "iframe"] {
        let script = [("host", host.as_str()), ("sec-fetch-site", "same-origin"), ("sec-fetch-dest", destination)];
        assert_eq!(stage.raw("GET", &address, &script, "").await.status, 403, "{destination}");
    }
    let window = [("host", host.as_str()), ("sec-fetch-site", "none"), ("sec-fetch-dest", "document")];
    let response = stage.raw("GET", &address, &window, "").await;
    assert_eq!((response.status, response.header("clear-site-data")), (303, Some("\"storage\"")));
    let browser = Browser {
        cookie: response.header("set-cookie").unwrap().split(';').next().unwrap().into(),
        ..Browser::default()
    };
    for (name, ..) in FILES.into_iter().filter(|(name, ..)| !name.is_empty()) {
        assert_eq!(stage.send(&browser, "GET", &format!("/{name}"), None).await.status, 404, "{name}");
        let references = FILES[0].2.matches(&format!("\"/{name}")).count();
        assert_eq!(references, 0, "the page names {name} below its own path");
    }
}

/// A service worker that another program left at this port belongs to 127.0.0.1, and sees nothing under another name.
#[tokio::test]
async fn browser_is_led_to_a_name_of_its_own() {
    let (stage, other) = (start(Mode::ReadOnly).await, start(Mode::ReadOnly).await);
    assert_ne!(stage.name, other.name, "no name is known before the start");
    let (host, named) = (stage.host(), format!("{}:{}", stage.name, stage.port));
    let address = format!("/?token={}", stage.token);
    let chromium =
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Safari/537.36";
    let firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:150.0) Gecko/20100101 Firefox/150.0";
    let safari = "Mozilla/5.0 (Macintosh) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.4 Safari/605.1.15";
    for site in ["none", "cross-site"] {
        for agent in [chromium, firefox] {
            let visit = [
                ("host", host.as_str()),
                ("user-agent", agent),
                ("sec-fetch-site", site),
                ("sec-fetch-mode", "navigate"),
                ("sec-fetch-dest", "document"),
            ];
            let response = stage.raw("GET", &address, &visit, "").await;
            let location = format!("http://{named}{address}");
            assert_eq!((response.status, response.header("location")), (303, Some(location.as_str())), "{agent}");
            assert_eq!(response.header("set-cookie"), None, "the token is for the other name");
        }
    }
    // What a service worker fetches has no destination, and stays where it is.
    let script = [("host", host.as_str()), ("user-agent", chromium), ("sec-fetch-dest", "empty")];
    let response = stage.raw("GET", &address, &script, "").await;
    assert_eq!((response.status, response.header("location")), (403, None));

    // Strict cookies do not follow a redirect from the other name, so the browser gets a page that leads on.
    let visit =
        [("host", named.as_str()), ("user-agent", firefox), ("sec-fetch-site", "none"), ("sec-fetch-dest", "document")];
    let response = stage.raw("GET", &address, &visit, "").await;
    assert_eq!((response.status, response.header("location")), (200, None));
    assert!(response.body.contains(&format!("content=\"0; url={}\"", stage.page)), "{}", response.body);
    let cookie = response.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let page =
        [("host", named.as_str()), ("user-agent", firefox), ("sec-fetch-site", "same-origin"), ("cookie", &cookie)];
    assert_eq!(stage.raw("GET", &stage.page, &page, "").await.status, 200);
    let origin = format!("http://{}", stage.host());
    let foreign = [&page[..], &[("origin", origin.as_str())]].concat();
    assert_eq!(stage.raw("GET", &stage.page, &foreign, "").await.status, 403, "127.0.0.1 is another origin");

    // Safari looks the name up and does not find it.
    let host = other.host();
    let visit =
        [("host", host.as_str()), ("user-agent", safari), ("sec-fetch-site", "none"), ("sec-fetch-dest", "document")];
    let response = other.raw("GET", &format!("/?token={}", other.token), &visit, "").await;
    assert_eq!((response.status, response.header("location")), (303, Some(other.page.as_str())));
}

#[tokio::test]
async fn visit_from_a_file_is_let_in_by_the_token_alone() {
    let stage = start(Mode::ReadOnly).await;
    let host = stage.host();
    let address = format!("/?token={}", stage.token);
    let visit = [
        ("host", host.as_str()),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-mode", "navigate"),
        ("sec-fetch-dest", "document"),
    ];
    // A frame, a script's request, a form, and a page of another site.
    for (name, value) in [("sec-fetch-dest", "iframe"), ("sec-fetch-mode", "no-cors"), ("sec-fetch-site", "same-site")]
    {
        let changed = visit.map(|(known, old)| (known, if known == name { value } else { old }));
        assert_eq!(stage.raw("GET", &address, &changed, "").await.status, 403, "{name}: {value}");
    }
    let form = [&visit[..], &[("origin", "null")]].concat();
    assert_eq!(stage.raw("GET", &address, &form, "").await.status, 403);
    assert_eq!(stage.raw("POST", &address, &visit, "").await.status, 403);
    assert_eq!(stage.raw("GET", "/?token=0", &visit, "").await.status, 403);

    let response = stage.raw("GET", &address, &visit, "").await;
    assert_eq!((response.status, response.header("location")), (200, None));
    assert!(
        response.body.contains(&format!("content=\"0; url={}\"", stage.page)) && !response.body.contains(&stage.token)
    );
    let cookie = response.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let browser = Browser { cookie: cookie.clone(), ..Browser::default() };
    assert_eq!(response.header("clear-site-data"), Some("\"storage\""));
    assert_eq!(stage.send(&browser, "GET", &stage.page, None).await.status, 200);

    // Nothing but the token is let in so, and it works once.
    let with_cookie = [&visit[..], &[("cookie", cookie.as_str())]].concat();
    for target in ["/", &stage.page, &stage.file("console.css"), "/api/tenants", "/api/tenants?token=x", &address] {
        assert_eq!(stage.raw("GET", target, &with_cookie, "").await.status, 403, "{target}");
    }
    assert_eq!(stage.calls(), []);
}

#[tokio::test]
async fn every_request_needs_the_session() {
    let stage = start(Mode::Write).await;
    let browser = stage.enter().await;
    let wrong = format!("mandate-console-{}={}", stage.port, "0".repeat(64));
    let renamed = browser.cookie.replace("mandate-console", "other");
    let reads = ["/api/session", "/api/tenants", "/api/incidents", "/no-such-route"];
    for cookie in ["", wrong.as_str(), &renamed] {
        let stranger = Browser { cookie: cookie.into(), key: browser.key.clone() };
        for target in FILES.map(|(name, ..)| stage.file(name)).into_iter().chain(reads.map(str::to_owned)) {
            assert_eq!(stage.send(&stranger, "GET", &target, None).await.status, 401, "{target}");
        }
        for (method, target, body) in changes() {
            assert_eq!(stage.send(&stranger, method, &target, Some(&body)).await.code(), "no_session", "{target}");
        }
        assert_eq!(stage.send(&stranger, "POST", "/session/key", Some(&json!({}))).await.code(), "no_session");
    }
    assert_eq!(stage.calls(), []);
}

#[tokio::test]
async fn cookie_alone_opens_no_data() {
    let stage = start(Mode::Write).await;
    let browser = stage.enter().await;
    // The key is given once, so a program that sees the cookie later does not get it.
    assert_eq!(stage.send(&browser, "POST", "/session/key", Some(&json!({}))).await.code(), "key_given");
    for key in ["", "0", &"0".repeat(64)] {
        let thief = Browser { key: key.into(), ..browser.clone() };
        assert_eq!(stage.send(&thief, "GET", "/api/tenants", None).await.code(), "unknown_key");
        for (method, target, body) in changes() {
            assert_eq!(stage.send(&thief, method, &target, Some(&body)).await.code(), "unknown_key", "{target}");
        }
    }
    assert_eq!(stage.calls(), []);
    assert_eq!(stage.send(&browser, "GET", "/api/tenants", None).await.status, 200);
}

#[tokio::test]
async fn change_that_a_form_could_send_is_refused() {
    let stage = start(Mode::Write).await;
    let browser = stage.enter().await;
    let (host, target) = (stage.host(), format!("/api/tenants/{TENANT}/pause"));
    let session = [("host", host.as_str()), ("cookie", &browser.cookie), ("x-mandate-console", &browser.key)];
    for content_type in
        ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/json-x", ""]
    {
        let headers = [session.as_slice(), &[("content-type", content_type)]].concat();
        let response = stage.raw("POST", &target, &headers, r#"{"customer": "Contoso"}"#).await;
        assert_eq!(response.status, 415, "{content_type}");
    }
    assert_eq!(stage.raw("POST", &target, &session, r#"{"customer": "Contoso"}"#).await.status, 415);
    assert_eq!(stage.calls(), []);
    let headers = [session.as_slice(), &[("content-type", "application/json; charset=utf-8")]].concat();
    assert_eq!(stage.raw("POST", &target, &headers, r#"{"customer": "Contoso"}"#).await.status, 200);
}

#[tokio::test]
async fn every_response_has_the_security_headers() {
    let stage = start(Mode::ReadOnly).await;
    let host = stage.host();
    let entry = stage.raw("GET", &format!("/?token={}", stage.token), &[("host", &host)], "").await;
    let browser =
        Browser { cookie: entry.header("set-cookie").unwrap().split(';').next().unwrap().into(), ..Browser::default() };
    let mut responses = vec![
        entry,
        stage.raw("GET", "/", &[("host", &host)], "").await,
        stage.raw("GET", "/", &[("host", "evil.example")], "").await,
        stage.send(&browser, "GET", "/no-such-route", None).await,
        stage.send(&browser, "PUT", &stage.file("console.css"), Some(&json!({}))).await,
        stage.send(&browser, "GET", "/api/tenants", None).await,
        stage.send(&browser, "POST", "/session/key", Some(&json!({}))).await,
    ];
    for (name, content_type, content) in FILES {
        let response = stage.send(&browser, "GET", &stage.file(name), None).await;
        assert_eq!(
            (response.status, response.header("content-type"), response.body.as_str()),
            (200, Some(content_type), content)
        );
        responses.push(response);
    }
    for response in responses {
        let policy = response.header("content-security-policy").unwrap();
        for part in [
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; \
             form-action 'self'; frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        ] {
            assert!(policy.contains(part), "{policy}");
        }
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("cache-control", "no-store"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
            ("x-frame-options", "DENY"),
        ] {
            assert_eq!(response.header(name), Some(value), "{}", response.head);
        }
        assert_eq!(response.header("access-control-allow-origin"), None);
    }
}

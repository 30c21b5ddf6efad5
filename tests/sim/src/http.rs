//! Requests as received and responses as sent, with the transport faults of a response.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    extract::connect_info::Connected,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode},
    serve::{IncomingStream, Listener},
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};

use crate::faults::Host;

/// A request with its body. Nothing is decoded.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) host: Host,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The media type without its parameters, lower case.
    pub(crate) fn media_type(&self) -> String {
        let value = self.header("content-type").unwrap_or_default();
        value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
    }

    pub(crate) fn cookie(&self, name: &str) -> Option<&str> {
        let values = self.headers.get_all("cookie").into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(';')).find_map(|pair| {
            let (key, value) = pair.trim().split_once('=')?;
            (key == name).then_some(value)
        })
    }

    pub(crate) fn bearer(&self) -> Option<&str> {
        let value = self.header("authorization")?;
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token)
    }

    pub(crate) fn segments(&self) -> Vec<&str> {
        self.path.split('/').filter(|segment| !segment.is_empty()).collect()
    }

    /// The query decoded leniently, for matching faults. Handlers decode strictly by [`decode_pairs`].
    pub(crate) fn decoded_query(&self) -> String {
        match decode_pairs(&self.query) {
            Ok(pairs) => pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join("&"),
            Err(_) => self.query.clone(),
        }
    }

    pub(crate) fn is_token_request(&self) -> bool {
        self.host == Host::Entra && self.path.ends_with("/token")
    }

    pub(crate) fn is_incident_list(&self) -> bool {
        self.host != Host::Entra && self.method == "GET" && self.path.ends_with("/incidents")
    }

    pub(crate) fn incident_in_path(&self) -> Option<&str> {
        let segments = self.segments();
        let position = segments.iter().position(|segment| *segment == "incidents")?;
        segments.get(position + 1).copied()
    }

    pub(crate) fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }
}

/// Decodes `application/x-www-form-urlencoded` strictly: a `+` is a space, a bad escape or bad UTF-8 is an error.
pub(crate) fn decode_pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((decode(key)?, decode(value)?))
        })
        .collect()
}

/// Decodes one part of a form strictly.
pub(crate) fn decode(text: &str) -> Result<String, String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match first {
            b'+' => decoded.push(b' '),
            b'%' => {
                let digits = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
                let byte = digits
                    .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
                    .and_then(|digits| u8::from_str_radix(digits, 16).ok())
                    .ok_or_else(|| format!("bad escape in '{text}'"))?;
                decoded.push(byte);
                rest = &tail[2..];
            }
            byte => decoded.push(*byte),
        }
    }
    String::from_utf8(decoded).map_err(|_| format!("bad UTF-8 in '{text}'"))
}

/// Percent-encodes as Microsoft's redirects do.
pub(crate) fn encode(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// A part of a body. Generated parts are produced while they are sent.
pub(crate) enum BodyPart {
    Text(String),
    Generated { count: usize, make: Arc<dyn Fn(usize) -> String + Send + Sync> },
}

impl BodyPart {
    fn into_chunks(self) -> Box<dyn Iterator<Item = String> + Send> {
        match self {
            Self::Text(text) => Box::new(std::iter::once(text)),
            Self::Generated { count, make } => Box::new((0..count).map(move |n| make(n))),
        }
    }
}

/// A response before transport faults.
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<BodyPart>,
    /// The incidents in the body, for faults that follow an incident.
    pub(crate) incident_ids: Vec<u64>,
}

impl Response {
    pub(crate) fn new(status: u16, content_type: &str, body: impl Into<String>) -> Self {
        Self {
            status,
            headers: vec![("content-type".to_owned(), content_type.to_owned())],
            body: vec![BodyPart::Text(body.into())],
            incident_ids: Vec::new(),
        }
    }

    pub(crate) fn json(status: u16, body: &Value) -> Self {
        Self::new(status, "application/json; charset=utf-8", body.to_string())
    }

    pub(crate) fn html(status: u16, body: impl Into<String>) -> Self {
        Self::new(status, "text/html; charset=utf-8", body)
            .with("cache-control", "no-store, no-cache")
            .with("referrer-policy", "strict-origin-when-cross-origin")
    }

    pub(crate) fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), incident_ids: Vec::new() }
    }

    pub(crate) fn redirect(location: &str) -> Self {
        Self::empty(302).with("location", location).with("cache-control", "no-store, no-cache")
    }

    /// Sets a header in place of an earlier one of the same name.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.set(name, value);
        self
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.headers.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
        self.headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// The length that a truncated body keeps.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Truncation {
    Half,
    Bytes(usize),
}

/// A body that is sent in chunks with a pause before each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlowBody {
    pub(crate) chunk_bytes: usize,
    pub(crate) pause: Duration,
}

/// Faults between the host and the client.
#[derive(Debug, Default)]
pub(crate) struct TransportFaults {
    pub(crate) reset: bool,
    pub(crate) delay: Duration,
    pub(crate) truncate: Option<Truncation>,
    pub(crate) cut: bool,
    pub(crate) slow_body: Option<SlowBody>,
}

/// Converts a response into axum's.
pub(crate) fn send(response: Response, transport: &TransportFaults) -> axum::response::Response {
    let generated = response.body.iter().any(|piece| matches!(piece, BodyPart::Generated { .. }));
    let chunks = response.body.into_iter().flat_map(BodyPart::into_chunks);
    let body = if generated && transport.truncate.is_none() && !transport.cut && transport.slow_body.is_none() {
        Body::from_stream(stream::iter(chunks.map(|chunk| Ok::<_, io::Error>(Bytes::from(chunk)))))
    } else {
        damaged_body(chunks.collect::<String>().into_bytes(), transport)
    };
    let mut sent = axum::response::Response::new(body);
    *sent.status_mut() = StatusCode::from_u16(response.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in &response.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            sent.headers_mut().append(name, value);
        }
    }
    sent
}

fn damaged_body(mut bytes: Vec<u8>, transport: &TransportFaults) -> Body {
    match transport.truncate {
        Some(Truncation::Half) => bytes.truncate(bytes.len() / 2),
        Some(Truncation::Bytes(length)) => bytes.truncate(length),
        None => {}
    }
    let mut parts: Vec<io::Result<Bytes>> = Vec::new();
    if transport.cut {
        bytes.truncate(bytes.len() / 2);
    }
    let chunk_bytes = transport.slow_body.map_or(bytes.len(), |slow| slow.chunk_bytes).max(1);
    parts.extend(bytes.chunks(chunk_bytes).map(|part| Ok(Bytes::copy_from_slice(part))));
    if transport.cut {
        parts.push(Err(io::ErrorKind::ConnectionAborted.into()));
    } else if transport.slow_body.is_none() {
        return Body::from(bytes);
    }
    let pause = transport.slow_body.map_or(Duration::from_millis(5), |slow| slow.pause);
    Body::from_stream(stream::iter(parts).then(move |part| async move {
        tokio::time::sleep(pause).await;
        part
    }))
}

/// A listener whose connections can be reset from a handler.
pub(crate) struct ResettableListener(pub(crate) TcpListener);

impl Listener for ResettableListener {
    type Io = Socket;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (stream, address) = Listener::accept(&mut self.0).await;
        // Without this, the client's delayed acknowledgement of the first chunk delays the second by 40 ms.
        let _ = stream.set_nodelay(true);
        (Socket { stream, reset: Arc::default() }, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

pub(crate) struct Socket {
    stream: TcpStream,
    reset: Arc<AtomicBool>,
}

impl Socket {
    fn refuse(&self) -> io::Result<()> {
        if self.reset.load(Ordering::Acquire) {
            self.stream.set_zero_linger()?;
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.refuse() {
            Ok(()) => Pin::new(&mut self.stream).poll_write(cx, buf),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.refuse() {
            Ok(()) => Pin::new(&mut self.stream).poll_shutdown(cx),
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

/// The connection of a request.
#[derive(Clone)]
pub(crate) struct Connection(Arc<AtomicBool>);

impl Connection {
    /// Resets the connection at its next write.
    pub(crate) fn reset(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Connected<IncomingStream<'_, ResettableListener>> for Connection {
    fn connect_info(stream: IncomingStream<'_, ResettableListener>) -> Self {
        Self(Arc::clone(&stream.io().reset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plus_is_a_space_and_bad_escapes_are_refused() {
        assert_eq!(decode("a+b%20c%2B").as_deref(), Ok("a b c+"));
        assert!(decode("%2").is_err());
        assert!(decode("%+1").is_err());
        assert!(decode("%ff").is_err());
        assert_eq!(decode_pairs("a=1&b").as_deref(), Ok(&[("a".into(), "1".into()), ("b".into(), String::new())][..]));
    }
}

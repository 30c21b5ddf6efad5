//! A browser without scripting: it stores cookies by host, follows redirects and submits forms. Neither our pages nor
//! the simulator's need a script.

use std::collections::BTreeMap;

use axum::http::header::{LOCATION, REFERRER_POLICY, SET_COOKIE};
use url::Url;

use crate::{ambient, error::StackError};

const MAX_REDIRECTS: usize = 20;
/// Pages that Microsoft may show between our form and our callback.
const MAX_PAGES: usize = 10;

/// One user's browser, with the current page.
#[derive(Debug)]
pub struct Browser {
    client: reqwest::Client,
    /// Cookies by host name. As in every browser, the port does not matter.
    cookies: BTreeMap<String, BTreeMap<String, String>>,
    page: Option<Page>,
}

/// A page that was loaded.
#[derive(Clone, Debug)]
pub struct Page {
    /// The URL after all redirects.
    pub url: Url,
    /// The HTTP status code of the last response.
    pub status: u16,
    /// The response body, unparsed.
    pub html: String,
    sends_origin: bool,
}

/// A `button` element, or an `input` of type `submit`.
#[derive(Clone, Debug)]
pub struct Button {
    /// The attributes by lower-case name, with entities decoded.
    pub attributes: BTreeMap<String, String>,
}

impl Button {
    /// Returns an attribute's value; empty if it is absent.
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

#[derive(Debug, Default)]
struct Form {
    action: String,
    fields: Vec<(String, String)>,
    buttons: Vec<Button>,
}

/// The body of a form and the value of its `Origin` header.
#[derive(Debug)]
struct Submission {
    body: String,
    origin: String,
}

impl Browser {
    /// Creates a browser without cookies.
    pub fn new() -> Result<Self, StackError> {
        let client = ambient::http_client().map_err(|error| failed(&error))?;
        Ok(Self { client, cookies: BTreeMap::new(), page: None })
    }

    /// The current page, if any was loaded.
    pub fn page(&self) -> Option<&Page> {
        self.page.as_ref()
    }

    /// Loads a URL and follows its redirects.
    pub async fn open(&mut self, url: &str) -> Result<&Page, StackError> {
        let url = Url::parse(url).map_err(|error| failed(&error))?;
        self.navigate(url, None).await
    }

    /// Presses the first matching button in any form of the page. Returns `None` if the page has no such button.
    pub async fn press(&mut self, wanted: impl Fn(&Button) -> bool) -> Result<Option<&Page>, StackError> {
        let Some(page) = &self.page else {
            return Ok(None);
        };
        for form in forms(&page.html) {
            let Some(button) = form.buttons.iter().find(|button| wanted(button)) else {
                continue;
            };
            let url = page.url.join(&form.action).map_err(|error| failed(&error))?;
            let mut fields = form.fields;
            if !button.attribute("name").is_empty() {
                fields.push((button.attribute("name").to_owned(), button.attribute("value").to_owned()));
            }
            let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
            let origin = if page.sends_origin { page.url.origin().ascii_serialization() } else { "null".to_owned() };
            return self.navigate(url, Some(Submission { body, origin })).await.map(Some);
        }
        Ok(None)
    }

    /// Follows a consent link to its last page, as a user of a tenant who accepts everything: our form, the account, the
    /// permissions. Stops at the first page without such a button.
    pub async fn consent(&mut self, consent_url: &str, tenant_id: &str, user: &str) -> Result<Page, StackError> {
        let start = self.open(consent_url).await?.url.clone();
        self.press(|_| true).await?;
        for _ in 0..MAX_PAGES {
            if self.page.as_ref().is_none_or(|page| page.url.origin() == start.origin()) {
                break;
            }
            let is_own_account =
                |button: &Button| button.attribute("data-user") == user && button.attribute("data-tenant") == tenant_id;
            let continued = self.press(is_own_account).await?.is_some()
                || self.press(|button| button.attribute("id") == "accept").await?.is_some();
            if !continued {
                break;
            }
        }
        let page = self.page.clone();
        page.ok_or_else(|| StackError::Http { doing: "browsing", detail: "there is no page".to_owned() })
    }

    async fn navigate(&mut self, mut url: Url, mut form: Option<Submission>) -> Result<&Page, StackError> {
        for _ in 0..MAX_REDIRECTS {
            let mut request = match form.take() {
                Some(Submission { body, origin }) => {
                    let request = self.client.post(url.clone()).header("origin", origin);
                    request.header("content-type", "application/x-www-form-urlencoded").body(body)
                }
                None => self.client.get(url.clone()),
            };
            let cookies = self.cookies_for(&url);
            if !cookies.is_empty() {
                request = request.header("cookie", cookies);
            }
            let response = request.header("accept", "text/html").send().await.map_err(|error| failed(&error))?;
            for cookie in response.headers().get_all(SET_COOKIE) {
                self.store_cookie(&url, &String::from_utf8_lossy(cookie.as_bytes()));
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            if let (true, Some(location)) = (response.status().is_redirection(), location) {
                url = url.join(location).map_err(|error| failed(&error))?;
                continue;
            }
            let sends_origin = response.headers().get(REFERRER_POLICY).is_none_or(|policy| policy != "no-referrer");
            let status = response.status().as_u16();
            let html = response.text().await.map_err(|error| failed(&error))?;
            return Ok(self.page.insert(Page { url, status, html, sends_origin }));
        }
        Err(StackError::Http { doing: "browsing", detail: format!("more than {MAX_REDIRECTS} redirects, to {url}") })
    }

    fn cookies_for(&self, url: &Url) -> String {
        let cookies = self.cookies.get(url.host_str().unwrap_or_default());
        let pairs = cookies.into_iter().flatten().map(|(name, value)| format!("{name}={value}"));
        pairs.collect::<Vec<_>>().join("; ")
    }

    fn store_cookie(&mut self, url: &Url, cookie: &str) {
        let mut parts = cookie.split(';').map(str::trim);
        let Some((name, value)) = parts.next().and_then(|pair| pair.split_once('=')) else {
            return;
        };
        let is_expired = parts.any(|part| part.eq_ignore_ascii_case("max-age=0"));
        let cookies = self.cookies.entry(url.host_str().unwrap_or_default().to_owned()).or_default();
        if is_expired {
            cookies.remove(name);
        } else {
            cookies.insert(name.to_owned(), value.to_owned());
        }
    }
}

fn failed(error: &dyn std::error::Error) -> StackError {
    let mut detail = error.to_string();
    if let Some(source) = error.source() {
        detail = format!("{detail}: {source}");
    }
    StackError::Http { doing: "browsing", detail }
}

/// Parses the forms of a page. Every attribute must be in double quotes, as in our pages and the simulator's.
fn forms(html: &str) -> Vec<Form> {
    let mut forms: Vec<Form> = Vec::new();
    let mut is_open = false;
    for tag in html.split('<').skip(1) {
        let tag = tag.split_once('>').map_or(tag, |(tag, _)| tag);
        let name = tag.split(|c: char| c.is_whitespace() || c == '/').next().unwrap_or_default();
        let attributes = || attributes(&tag[name.len()..]);
        match (name, forms.last_mut()) {
            ("form", _) => {
                let action = attributes().remove("action").unwrap_or_default();
                forms.push(Form { action, ..Form::default() });
                is_open = true;
            }
            ("", _) if tag.starts_with("/form") => is_open = false,
            ("input", Some(form)) if is_open => {
                let mut attributes = attributes();
                let name = attributes.remove("name").unwrap_or_default();
                if attributes.get("type").is_some_and(|kind| kind == "submit") {
                    attributes.insert("name".to_owned(), name);
                    form.buttons.push(Button { attributes });
                } else if !name.is_empty() {
                    form.fields.push((name, attributes.remove("value").unwrap_or_default()));
                }
            }
            ("button", Some(form)) if is_open => form.buttons.push(Button { attributes: attributes() }),
            _ => {}
        }
    }
    forms
}

fn attributes(text: &str) -> BTreeMap<String, String> {
    let mut attributes = BTreeMap::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("=\"") {
        let Some((value, next)) = after.split_once('"') else {
            break;
        };
        let name = before.split_whitespace().last().unwrap_or_default();
        attributes.insert(name.to_ascii_lowercase(), unescape(value));
        rest = next;
    }
    attributes
}

fn unescape(text: &str) -> String {
    let plain = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"");
    plain.replace("&#39;", "'").replace("&#x27;", "'").replace("&#38;", "&").replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn form_has_its_own_fields_and_buttons() {
        let html = r#"<p>x</p><form method="post" action="/login">
            <input type="hidden" name="flow" value="a&amp;b">
            <button class="user" name="user" value="t/o" data-user="admin@contoso.example">Admin</button>
            <button id="cancel" name="user" value="">Cancel</button></form>
            <input name="outside" value="1"><form><input type="submit"></form>"#;
        let forms = forms(html);
        assert_eq!(forms.len(), 2);
        assert_eq!(forms[0].action, "/login");
        assert_eq!(forms[0].fields, [("flow".to_owned(), "a&b".to_owned())]);
        assert_eq!(forms[0].buttons.len(), 2);
        assert_eq!(forms[0].buttons[0].attribute("data-user"), "admin@contoso.example");
        assert_eq!((forms[1].action.as_str(), forms[1].buttons.len()), ("", 1));
    }

    #[test]
    fn cookies_are_sent_to_their_host_until_they_expire() {
        let mut browser = Browser::new().unwrap();
        let (ours, theirs) = (Url::parse("http://localhost:1/a").unwrap(), Url::parse("http://127.0.0.1:2/").unwrap());
        browser.store_cookie(&ours, "__Host-mandate=x; Path=/; Secure; HttpOnly; SameSite=Lax");
        browser.store_cookie(&theirs, "ESTSAUTH=y");
        assert_eq!(browser.cookies_for(&ours), "__Host-mandate=x");
        assert_eq!(browser.cookies_for(&theirs), "ESTSAUTH=y");
        browser.store_cookie(&ours, "__Host-mandate=; Max-Age=0; Path=/");
        assert_eq!(browser.cookies_for(&ours), "");
    }
}

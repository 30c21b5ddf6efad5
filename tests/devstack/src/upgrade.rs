//! `cargo dev --once --chaos`: what a later release begins beside its polls, this one ends after the way back. At the end a
//! table of the items that the later release stored.

use devstack::{Browser, Console, Failed, LaterItems, LaterKind, Stack};
use serde_json::{Value, json};

use crate::{
    customers::FABRIKAM,
    journey::{check, expect, invite},
};

/// The kinds of items that the two releases must both have written.
const WRITTEN_BY_BOTH: [&str; 4] = ["TENANT PROFILE", "TENANT FEED", "TENANT VERSIONS", "INVITATION"];

/// The kinds of items that hold words of the later release.
const WITH_WORDS: [&str; 3] = ["TENANT PROFILE", "TENANT JOB", "ATTEMPT"];

/// What the later release has begun.
#[derive(Debug)]
pub(crate) struct Begun {
    consent_url: String,
    job: String,
    hunt: String,
    next: String,
}

impl Begun {
    /// Begins with one thing of each kind: an invitation that is opened, a job, a hunt, a list, and a new customer's name.
    pub(crate) async fn by_the_later_release(stack: &Stack) -> Result<Self, Failed> {
        let consent_url = invite(stack, FABRIKAM.name, Some(FABRIKAM.domain)).await?;
        let mut browser = Browser::new()?;
        browser.open(&consent_url).await?;
        browser.press(|_| true).await?;
        rename(stack, "Fabrikam Ltd").await?;
        let sync = format!("{}/sync", tenant_path());
        let job = expect(&stack.call("POST", &sync, Some(json!({"kind": "backfill"}))).await?, 202)?;
        let hunt = json!({"query": "DeviceInfo | take 1", "tenants": [FABRIKAM.tenant_id], "wait_seconds": 0});
        let hunt = expect(&stack.call("POST", "/hunting", Some(hunt)).await?, 202)?;
        let list = expect(&stack.call("GET", "/tenants?sort=lag&limit=1", None).await?, 200)?;
        stack.drain_queue().await?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(Self {
            consent_url,
            job: format!("{sync}/{}", text(&job["job_id"])),
            hunt: format!("/hunting/{}", text(&hunt["hunt_id"])),
            next: format!("/tenants?sort=lag&limit=1&next={}", text(&list["next"])),
        })
    }

    /// Ends all of it, and reads the words that this release does not know.
    pub(crate) async fn end_by_this_release(self, stack: &Stack) -> Result<(), Failed> {
        rename(stack, FABRIKAM.name).await?;
        let page = Browser::new()?.consent(&self.consent_url, FABRIKAM.tenant_id, FABRIKAM.administrator).await?;
        check(page.status == 200 && page.url.path() == "/consent/result", || {
            format!("an invitation of the later release ended at {} with status {}", page.url.path(), page.status)
        })?;
        let tenant = expect(&stack.call("GET", &format!("{}?history=true", tenant_path()), None).await?, 200)?;
        let has_word =
            tenant["history"].as_array().is_some_and(|past| past.iter().any(|past| past["status"] == "suspended"));
        check(has_word, || format!("the tenant's history lacks the later release's status: {}", tenant["history"]))?;
        let job = expect(&stack.call("GET", &self.job, None).await?, 200)?;
        check(job["kind"] == "reindex", || format!("a job of the later release is a {}", job["kind"]))?;
        expect(&stack.call("GET", &self.next, None).await?, 200)?;
        expect(&stack.call("GET", &self.hunt, None).await?, 200)?;
        let cancelled = stack.call("DELETE", &self.hunt, None).await?;
        check(cancelled.status == 204, || format!("a hunt of the later release was not cancelled: {}", cancelled.body))
    }
}

fn tenant_path() -> String {
    format!("/tenants/{}", FABRIKAM.tenant_id)
}

async fn rename(stack: &Stack, customer: &str) -> Result<(), Failed> {
    expect(&stack.call("PATCH", &tenant_path(), Some(json!({"customer": customer}))).await?, 200).map(drop)
}

/// Prints what became of the items of the later release.
///
/// # Errors
/// One of them lost something.
pub(crate) fn judge(items: &LaterItems, console: &mut Console) -> Result<(), Failed> {
    console.line("");
    let names = ["stored", "words", "written since"];
    console.line(&format!("{:<42} {:>8} {:>10} {:>15}", "items of the later release", names[0], names[1], names[2]));
    for (kind, LaterKind { stored, words, written }) in &items.kinds {
        console.line(&format!("{kind:<42} {stored:>8} {words:>10} {written:>15}"));
    }
    check(items.lost.is_empty(), || format!("lost what a later release stored: {}", items.lost.join(", ")))
}

/// Checks that the run had something to lose: both releases wrote items, and some hold words.
pub(crate) fn require_both_releases(items: &LaterItems) -> Result<(), Failed> {
    let of = |kind: &str| items.kinds.get(kind).copied().unwrap_or_default();
    for kind in WRITTEN_BY_BOTH {
        check(of(kind).written > 0, || format!("no item {kind} was written by both releases"))?;
    }
    for kind in WITH_WORDS {
        check(of(kind).words > 0, || format!("no item {kind} has a word of the later release"))?;
    }
    Ok(())
}

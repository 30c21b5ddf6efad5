//! Invitations: the links by which customers' administrators come in.

use serde_json::{Value, json};

use super::{Session, all_pages, text};
use crate::{
    args::Invite,
    output::{Field, Mood, Rows},
    problem::Problem,
    text::shown,
    time::local,
};

impl Session {
    pub(crate) async fn invite(&self, args: &Invite) -> Result<(), Problem> {
        let mut body = json!({"customer": args.customer});
        if let Some(tenant) = &args.tenant {
            body["expected_tenant"] = json!(tenant);
        }
        if let Some(hours) = args.hours {
            body["expires_in_hours"] = json!(hours);
        }
        let invitation = self.api.post(&["invitations"], Some(&body)).await?;
        if self.out.is_json() {
            return self.out.object(&invitation);
        }
        let customer = shown(text(&invitation, "customer"));
        self.out.say(format_args!("Send this link to an administrator of {customer}. It is shown this once.\n"))?;
        self.out.say(format_args!("  {}\n", shown(text(&invitation, "consent_url"))))?;
        let expires = local(text(&invitation, "expires_at"), &self.out.zone);
        self.out.say(format_args!("It works until {expires} and for one consent."))?;
        match invitation["expected_tenant"].as_str() {
            Some(tenant) => self.out.say(format_args!("Only the tenant {} counts.", shown(tenant))),
            None => self.out.say(
                "No tenant is named: it becomes that of an administrator whose role Entra proves. Any other one waits for your \
                 `mandate resume`.",
            ),
        }
    }

    pub(crate) async fn invitations(&self) -> Result<(), Problem> {
        let invitations = all_pages(&self.api, &["invitations"], &[], "invitations").await?;
        if self.out.is_json() {
            return invitations.iter().try_for_each(|invitation| self.out.object(invitation));
        }
        if invitations.is_empty() {
            return self.out.say("No invitation was made yet. `mandate invite CUSTOMER` makes one.");
        }
        let mut rows = Rows::new(["INVITATION", "CUSTOMER", "STATUS", "EXPIRES", "TENANT"]).unbroken(0).unbroken(4);
        for invitation in &invitations {
            rows.push(vec![
                text(invitation, "invitation_id").into(),
                text(invitation, "customer").into(),
                status(invitation),
                local(text(invitation, "expires_at"), &self.out.zone).into(),
                text(invitation, "expected_tenant").into(),
            ]);
        }
        self.out.table(rows)
    }

    pub(crate) async fn revoke(&self, invitation_id: &str) -> Result<(), Problem> {
        self.api.delete(&["invitations", invitation_id]).await?;
        if self.out.is_json() {
            return self.out.object(&json!({"invitation_id": invitation_id, "status": "revoked"}));
        }
        self.out.say(format_args!("The link of {} is of no use any more.", shown(invitation_id)))
    }
}

fn status(invitation: &Value) -> Field {
    let status = text(invitation, "status");
    let mood = match status {
        "open" => Mood::Doubtful,
        "used" => Mood::Good,
        _ => Mood::Quiet,
    };
    Field::new(status, mood)
}

//! Three customers in the simulator, with incidents that go on changing.

use devstack::CLIENT_ID;
use jiff::{SignedDuration, Timestamp};
use sim::{GLOBAL_ADMINISTRATOR, Incident, IncidentSeed, Sim, TenantSeed, User};

/// A customer of the partner.
#[derive(Debug)]
pub(crate) struct Customer {
    pub(crate) name: &'static str,
    pub(crate) tenant_id: &'static str,
    /// Verified at Microsoft.
    pub(crate) domain: &'static str,
    /// Who may consent.
    pub(crate) administrator: &'static str,
    /// Which of Microsoft's APIs it is read by.
    pub(crate) api: &'static str,
    titles: &'static [(&'static str, &'static str)],
}

/// Read by Graph, as every customer is unless the operator says otherwise.
pub(crate) const CONTOSO: Customer = Customer {
    name: "Contoso",
    tenant_id: "c0c0a000-1111-4111-8111-c0c0a0000001",
    domain: "contoso.example",
    administrator: "adele@contoso.example",
    api: "graph",
    titles: &[
        ("Multi-stage incident involving initial access and lateral movement", "high"),
        ("Suspicious PowerShell command line on one endpoint", "medium"),
        ("Password spray from an anonymous address", "medium"),
        ("Unusual volume of file deletion", "low"),
    ],
};

/// Read by Graph, too.
pub(crate) const FABRIKAM: Customer = Customer {
    name: "Fabrikam",
    tenant_id: "fab00000-2222-4222-8222-fab000000002",
    domain: "fabrikam.example",
    administrator: "frank@fabrikam.example",
    api: "graph",
    titles: &[
        ("Phishing mail delivered to three mailboxes", "medium"),
        ("Possible ransomware activity", "high"),
        ("Sign-in from an unfamiliar country", "low"),
    ],
};

/// Read by the Defender API, as its operator chose.
pub(crate) const NORTHWIND: Customer = Customer {
    name: "Northwind",
    tenant_id: "b0a7d000-3333-4333-8333-b0a7d0000003",
    domain: "northwind.example",
    administrator: "nora@northwind.example",
    api: "defender",
    titles: &[
        ("Credential dumping tool detected", "high"),
        ("Mailbox forwarding to an outside address", "medium"),
        ("Anonymous proxy activity", "informational"),
    ],
};

impl Customer {
    pub(crate) fn incidents(&self) -> usize {
        self.titles.len()
    }

    /// Puts the customer into the simulator, its incidents spread over the hours before.
    pub(crate) fn seed(&self, sim: &Sim) {
        sim.add_tenant(TenantSeed {
            tenant_id: self.tenant_id.to_owned(),
            domain: self.domain.to_owned(),
            display_name: self.name.to_owned(),
            users: vec![User {
                name: self.administrator.to_owned(),
                wids: vec![GLOBAL_ADMINISTRATOR.to_owned()],
                ..User::default()
            }],
            ..TenantSeed::default()
        });
        if self.api == "defender" {
            // What its administrator consented to long ago; the invitation's consent is to Graph.
            sim.grant(self.tenant_id, CLIENT_ID, &["Incident.ReadWrite.All"]);
        }
        let mut minutes = 7;
        for (title, severity) in self.titles {
            let created = before(sim.clock().now(), minutes);
            sim.put_incident(self.tenant_id, incident(title, severity, Some(created)));
            minutes += 47;
        }
    }

    /// Something happens at the customer; what it is depends on the turn alone. Says what it was.
    pub(crate) fn happen(&self, sim: &Sim, turn: usize) -> String {
        let count = self.titles.len();
        let (title, severity) = self.titles[turn % count];
        let id = (turn / 4 % count + 1).to_string();
        let now = sim.clock().now();
        match turn % 4 {
            0 => {
                sim.update_incident(self.tenant_id, &id, |incident| {
                    incident.add_alert(now);
                });
                format!("{}: incident {id} gets an alert", self.name)
            }
            1 => {
                let id = sim.put_incident(self.tenant_id, incident(title, severity, None));
                format!("{}: incident {id} is new", self.name)
            }
            2 => {
                sim.update_incident(self.tenant_id, &id, |incident| "inProgress".clone_into(&mut incident.status));
                format!("{}: incident {id} is being worked on", self.name)
            }
            _ => {
                sim.update_incident(self.tenant_id, &id, close);
                format!("{}: incident {id} is resolved", self.name)
            }
        }
    }
}

/// Resolves an incident as an analyst does.
pub(crate) fn close(incident: &mut Incident) {
    "resolved".clone_into(&mut incident.status);
    "truePositive".clone_into(&mut incident.classification);
    "multiStagedAttack".clone_into(&mut incident.determination);
}

fn incident(title: &str, severity: &str, created: Option<Timestamp>) -> IncidentSeed {
    IncidentSeed {
        display_name: title.to_owned(),
        severity: severity.to_owned(),
        alerts: 2,
        created,
        ..IncidentSeed::default()
    }
}

fn before(at: Timestamp, minutes: i64) -> Timestamp {
    at.checked_sub(SignedDuration::from_mins(minutes)).unwrap_or(at)
}

//! Three customers in the simulator, with incidents that keep changing.

use devstack::CLIENT_ID;
use jiff::{SignedDuration, Timestamp};
use sim::{GLOBAL_ADMINISTRATOR, Incident, IncidentSeed, Sim, TenantSeed, User};

/// A customer of the partner.
#[derive(Debug)]
pub(crate) struct Customer {
    pub(crate) name: &'static str,
    pub(crate) tenant_id: &'static str,
    /// A verified domain of the tenant.
    pub(crate) domain: &'static str,
    /// The user name of a global administrator, who may grant consent.
    pub(crate) administrator: &'static str,
    /// The Microsoft API that its incidents are read from: `graph` or `defender`.
    pub(crate) api: &'static str,
    incidents: &'static [InitialIncident],
}

#[derive(Debug)]
struct InitialIncident {
    title: &'static str,
    severity: &'static str,
}

/// A customer on the default API.
pub(crate) const CONTOSO: Customer = Customer {
    name: "Contoso",
    tenant_id: "c0c0a000-1111-4111-8111-c0c0a0000001",
    domain: "contoso.example",
    administrator: "adele@contoso.example",
    api: "graph",
    incidents: &[
        InitialIncident {
            title: "Multi-stage incident involving initial access and lateral movement",
            severity: "high",
        },
        InitialIncident { title: "Suspicious PowerShell command line on one endpoint", severity: "medium" },
        InitialIncident { title: "Password spray from an anonymous address", severity: "medium" },
        InitialIncident { title: "Unusual volume of file deletion", severity: "low" },
    ],
};

/// A second customer on the default API.
pub(crate) const FABRIKAM: Customer = Customer {
    name: "Fabrikam",
    tenant_id: "fab00000-2222-4222-8222-fab000000002",
    domain: "fabrikam.example",
    administrator: "frank@fabrikam.example",
    api: "graph",
    incidents: &[
        InitialIncident { title: "Phishing mail delivered to three mailboxes", severity: "medium" },
        InitialIncident { title: "Possible ransomware activity", severity: "high" },
        InitialIncident { title: "Sign-in from an unfamiliar country", severity: "low" },
    ],
};

/// A customer that the operator has moved to the Defender API.
pub(crate) const NORTHWIND: Customer = Customer {
    name: "Northwind",
    tenant_id: "b0a7d000-3333-4333-8333-b0a7d0000003",
    domain: "northwind.example",
    administrator: "nora@northwind.example",
    api: "defender",
    incidents: &[
        InitialIncident { title: "Credential dumping tool detected", severity: "high" },
        InitialIncident { title: "Mailbox forwarding to an outside address", severity: "medium" },
        InitialIncident { title: "Anonymous proxy activity", severity: "informational" },
    ],
};

impl Customer {
    pub(crate) fn incident_count(&self) -> usize {
        self.incidents.len()
    }

    /// Creates the tenant in the simulator, with incidents of the last hours.
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
            // The invitation asks for consent to Graph; this is an earlier consent to the Defender API.
            sim.grant(self.tenant_id, CLIENT_ID, &["Incident.ReadWrite.All"]);
        }
        let mut minutes = 7;
        for initial in self.incidents {
            let created = sim.clock().now().checked_sub(SignedDuration::from_mins(minutes)).ok();
            sim.put_incident(self.tenant_id, initial.seed(created));
            minutes += 47;
        }
    }

    /// Changes one incident, or adds one. The turn alone decides the kind of change.
    pub(crate) fn change_one_incident(&self, sim: &Sim, turn: usize) {
        let count = self.incidents.len();
        let id = (turn / 4 % count + 1).to_string();
        let now = sim.clock().now();
        match turn % 4 {
            0 => {
                sim.update_incident(self.tenant_id, &id, |incident| {
                    incident.add_alert(now);
                });
            }
            1 => {
                sim.put_incident(self.tenant_id, self.incidents[turn % count].seed(None));
            }
            2 => {
                sim.update_incident(self.tenant_id, &id, |incident| "inProgress".clone_into(&mut incident.status));
            }
            _ => {
                sim.update_incident(self.tenant_id, &id, close);
            }
        }
    }
}

/// Resolves an incident with the members that an analyst sets.
pub(crate) fn close(incident: &mut Incident) {
    "resolved".clone_into(&mut incident.status);
    "truePositive".clone_into(&mut incident.classification);
    "multiStagedAttack".clone_into(&mut incident.determination);
}

impl InitialIncident {
    fn seed(&self, created: Option<Timestamp>) -> IncidentSeed {
        IncidentSeed {
            display_name: self.title.to_owned(),
            severity: self.severity.to_owned(),
            alerts: 2,
            created,
            ..IncidentSeed::default()
        }
    }
}

//! The observables of an incident: the values of its evidence that analysts search for.
//!
//! The name of a member and the members beside it decide the type of a value. So evidence of a type that is not known
//! here has observables, too.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    fmt::Write as _,
    net::IpAddr,
    rc::Rc,
};

use serde::Serialize;
use serde_json::{Map, Value};

use super::is_email;

/// One value of `observable.type_id`, with its caption.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Kind {
    type_id: u32,
    caption: &'static str,
}

const fn kind(type_id: u32, caption: &'static str) -> Kind {
    Kind { type_id, caption }
}

const HOSTNAME: Kind = kind(1, "Hostname");
const IP_ADDRESS: Kind = kind(2, "IP Address");
const MAC_ADDRESS: Kind = kind(3, "MAC Address");
const USER_NAME: Kind = kind(4, "User Name");
const EMAIL_ADDRESS: Kind = kind(5, "Email Address");
const URL: Kind = kind(6, "URL String");
const FILE_NAME: Kind = kind(7, "File Name");
const HASH: Kind = kind(8, "Hash");
const PROCESS_NAME: Kind = kind(9, "Process Name");
const RESOURCE_UID: Kind = kind(10, "Resource UID");
const PORT: Kind = kind(11, "Port");
const COMMAND_LINE: Kind = kind(13, "Command Line");
const COUNTRY: Kind = kind(14, "Country");
const PROCESS_ID: Kind = kind(15, "Process ID");
const USER_AGENT: Kind = kind(16, "HTTP User-Agent");
const USER_UID: Kind = kind(31, "User Object: uid");
const GROUP_NAME: Kind = kind(32, "Group Object: name");
const GROUP_UID: Kind = kind(33, "Group Object: uid");
const ACCOUNT_UID: Kind = kind(35, "Account Object: uid");
const SERIAL_NUMBER: Kind = kind(37, "Serial Number");
const RESOURCE_NAME: Kind = kind(38, "Resource Details Object: name");
const EMAIL_SUBJECT: Kind = kind(40, "Email Object: subject");
const EMAIL_UID: Kind = kind(41, "Email Object: uid");
const MESSAGE_UID: Kind = kind(42, "Message UID");
const REGISTRY_VALUE_NAME: Kind = kind(43, "Registry Value Object: name");
const FILE_PATH: Kind = kind(45, "File Path");
const REGISTRY_KEY_PATH: Kind = kind(46, "Registry Key Path");
const DEVICE_UID: Kind = kind(47, "Device Object: uid");
// The type 99 is Other, whose caption is the source's own.
const MALWARE_NAME: Kind = kind(99, "Malware Name");
const REQUEST_ID: Kind = kind(99, "Request ID");
const SESSION_ID: Kind = kind(99, "Session ID");

/// The members of an incident or an alert that hold evidence: the one of Graph and the two of Defender.
const EVIDENCE: [&str; 3] = ["evidence", "devices", "entities"];

/// Members whose own members have names of the customer's choice.
const DICTIONARIES: [&str; 2] = ["labels", "selector"];

/// Members that hold cloud resources, whose `name` is the resource's.
const RESOURCES: [&str; 9] = [
    "blobContainer",
    "cluster",
    "containers",
    "controller",
    "ephemeralContainers",
    "initContainers",
    "namespace",
    "pod",
    "serviceAccount",
];

/// The observables among the members that are going to be in `unmapped`. A value that occurs more than once is listed
/// where it occurs first.
#[derive(Default)]
pub(super) struct Observables {
    found: Vec<Observable>,
    seen: HashMap<Kind, HashSet<Rc<str>>>,
    /// The current place in the event, like `unmapped.alerts[0].evidence[1].ipAddress`.
    path: String,
}

/// An observable, as the event has it.
#[derive(Serialize)]
struct Observable {
    name: Box<str>,
    r#type: &'static str,
    type_id: u32,
    value: Rc<str>,
}

impl Observables {
    /// Adds the observables of an object at this place in the event.
    pub(super) fn add_evidence(&mut self, place: &str, holder: &Map<String, Value>) {
        for name in EVIDENCE {
            if let Some(evidence) = holder.get(name) {
                self.path.clear();
                self.path.extend([place, ".", name]);
                self.add(Owner { members: holder, name: "" }, name, evidence);
            }
        }
    }

    /// The observables for the event, if there are any.
    pub(super) fn found(&self) -> Option<&impl Serialize> {
        (!self.found.is_empty()).then_some(&self.found)
    }

    /// Adds the observables of the value at the current place, which is the member `name` of `owner` or in its list.
    fn add(&mut self, owner: Owner<'_>, name: &str, value: &Value) {
        let here = self.path.len();
        match value {
            Value::Object(_) if DICTIONARIES.contains(&name) => {}
            Value::Object(members) => {
                let owner = Owner { members, name };
                for (name, value) in members {
                    self.path.extend([".", name]);
                    self.add(owner, name, value);
                    self.path.truncate(here);
                }
            }
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    // Writing to a text cannot fail.
                    let _ = write!(self.path, "[{index}]");
                    self.add(owner, name, item);
                    self.path.truncate(here);
                }
            }
            Value::String(_) | Value::Number(_) => {
                let process_name = Some(PROCESS_NAME).filter(|_| name == "fileName" && owner.is_process());
                for kind in [owner.kind_of(name), process_name].into_iter().flatten() {
                    self.add_value(kind, value);
                }
            }
            Value::Null | Value::Bool(_) => {}
        }
    }

    fn add_value(&mut self, kind: Kind, value: &Value) {
        let text = match value {
            Value::String(text) => Cow::Borrowed(text.as_str()),
            other => Cow::Owned(other.to_string()),
        };
        let seen = self.seen.entry(kind).or_default();
        if kind.admits(&text) && !seen.contains(text.as_ref()) {
            let value: Rc<str> = text.into();
            seen.insert(Rc::clone(&value));
            let Kind { type_id, caption } = kind;
            self.found.push(Observable { name: self.path.as_str().into(), r#type: caption, type_id, value });
        }
    }
}

/// The object that a member is in.
#[derive(Clone, Copy)]
struct Owner<'a> {
    members: &'a Map<String, Value>,
    /// Name of the member that the object is.
    name: &'a str,
}

impl Owner<'_> {
    fn has(self, name: &str) -> bool {
        self.members.contains_key(name)
    }

    /// Returns true for a process, and for the file that a process was started from.
    fn is_process(self) -> bool {
        let is_set = |name: &str| self.members.get(name).is_some_and(|value| !value.is_null());
        matches!(self.name, "imageFile" | "parentProcessImageFile")
            || is_set("processId")
            || is_set("processCommandLine")
    }

    /// The type of a member. `None`: nobody searches for it, or its name says too little.
    fn kind_of(self, name: &str) -> Option<Kind> {
        Some(match name {
            "activeDirectoryDomainName" | "deviceDnsName" | "deviceName" | "hostName" | "registry" => HOSTNAME,
            // Beside an account it is the Windows domain of a person.
            "domainName" if !self.has("accountName") => HOSTNAME,
            "macAddress" => MAC_ADDRESS,
            "accountName" | "login" | "upn" | "userPrincipalName" => USER_NAME,
            "email"
            | "mailboxAddress"
            | "mailboxPrimaryAddress"
            | "primaryAddress"
            | "recipient"
            | "recipients"
            | "sender"
            | "senderFromAddress"
            | "submitter"
            | "suspiciousRecipients" => EMAIL_ADDRESS,
            "url" | "urls" => URL,
            "fileName" => FILE_NAME,
            "md5" | "sha1" | "sha256" | "sha256Ac" | "signatureHash" => HASH,
            "value" if self.has("algorithm") => HASH,
            "agentId"
            | "amazonResourceId"
            | "appId"
            | "configurationId"
            | "containerId"
            | "fullResourceName"
            | "imageId"
            | "objectId"
            | "orgId"
            | "repoId"
            | "resourceId"
            | "resourceIdentifier"
            | "servicePrincipalObjectId"
            | "vmId" => RESOURCE_UID,
            "destinationPort" | "localPort" | "remotePort" | "sourcePort" => PORT,
            "commandLine" | "processCommandLine" => COMMAND_LINE,
            "countryLetterCode" => COUNTRY,
            "parentProcessId" | "processId" => PROCESS_ID,
            "userAgent" => USER_AGENT,
            "securityGroupId" | "groupId" => GROUP_UID,
            "activeDirectoryObjectGuid" | "sid" if self.has("securityGroupId") => GROUP_UID,
            "aadUserId"
            | "accountId"
            | "activeDirectoryObjectGuid"
            | "azureAdUserId"
            | "externalDirectoryObjectId"
            | "sid"
            | "userId"
            | "userSid" => USER_UID,
            "securityGroupName" => GROUP_NAME,
            "displayName" if self.has("securityGroupId") => GROUP_NAME,
            "amazonAccountId" | "projectId" | "subscriptionId" => ACCOUNT_UID,
            "serialNumber" => SERIAL_NUMBER,
            "agentName" | "resourceName" | "servicePrincipalName" => RESOURCE_NAME,
            "displayName" if self.has("appId") => RESOURCE_NAME,
            "name" => return self.kind_of_name(),
            "subject" => EMAIL_SUBJECT,
            "networkMessageId" | "networkMessageIds" => EMAIL_UID,
            "internetMessageId" => MESSAGE_UID,
            "registryValueName" => REGISTRY_VALUE_NAME,
            "filePath" => FILE_PATH,
            "registryKey" => REGISTRY_KEY_PATH,
            "aadDeviceId" | "azureAdDeviceId" | "deviceId" | "mdatpDeviceId" | "mdeDeviceId" => DEVICE_UID,
            "requestId" => REQUEST_ID,
            "sessionId" => SESSION_ID,
            _ => return kind_by_suffix(name),
        })
    }

    fn kind_of_name(self) -> Option<Kind> {
        let named_type = self.members.get("@odata.type").and_then(Value::as_str).unwrap_or_default();
        let is_resource = ["blob", "container", "kubernetes"].iter().any(|word| named_type.contains(word));
        match named_type {
            _ if is_resource || RESOURCES.contains(&self.name) => Some(RESOURCE_NAME),
            _ if named_type.ends_with("malwareEvidence") => Some(MALWARE_NAME),
            _ => None,
        }
    }
}

/// The type of a member that says by the end of its name what it holds, like `senderIp`.
fn kind_by_suffix(name: &str) -> Option<Kind> {
    let suffixes = [
        (
            IP_ADDRESS,
            ["Ip", "IP", "IpAddress", "ipAddress", "IPAddress", "ipAddresses", "IpAddresses", "ipInterfaces"]
                .as_slice(),
        ),
        (EMAIL_ADDRESS, &["EmailAddress", "emailAddress"]),
        (URL, &["Url"]),
    ];
    suffixes.into_iter().find(|(_, ends)| ends.iter().any(|end| name.ends_with(end))).map(|(kind, _)| kind)
}

impl Kind {
    /// Returns whether a text is a value of this type. Microsoft writes `-` for a value that is missing.
    fn admits(self, text: &str) -> bool {
        let has_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match self {
            _ if matches!(text.trim(), "" | "-") => false,
            HOSTNAME => !text.contains(|letter: char| letter.is_whitespace() || letter == '@'),
            IP_ADDRESS => text.split('%').next().is_some_and(|address| address.parse::<IpAddr>().is_ok()),
            MAC_ADDRESS => is_mac_address(text),
            EMAIL_ADDRESS => is_email(text),
            PORT => text.parse::<u16>().is_ok(),
            COUNTRY => text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_alphabetic()),
            PROCESS_ID => has_digits(text),
            _ => true,
        }
    }
}

/// Returns whether a text is a MAC address: six pairs of hexadecimal digits, with or without a sign between them.
fn is_mac_address(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_hex = |byte: &u8| byte.is_ascii_hexdigit();
    match bytes.len() {
        12 => bytes.iter().all(is_hex),
        17 => bytes
            .chunks(3)
            .all(|part| part[..2].iter().all(is_hex) && part.get(2).is_none_or(|sign| b":-".contains(sign))),
        _ => false,
    }
}

#[cfg(test)]
mod tests;

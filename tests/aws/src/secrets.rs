//! Secrets Manager: versions and their stages.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::{
    Account,
    wire::{Refusal, Served, invalid, only, text},
};

const CURRENT: &str = "AWSCURRENT";
const PREVIOUS: &str = "AWSPREVIOUS";
const ARN_PREFIX: &str = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:";
const ARN_SUFFIX: &str = "-AbCdEf";

/// A version of a secret.
#[derive(Clone, Debug, Default)]
pub struct SecretVersion {
    /// The value; Secrets Manager announces a pending version before it has one.
    pub value: Option<String>,
    /// The staging labels, each of which one version of a secret has.
    pub stages: BTreeSet<String>,
}

#[derive(Default)]
pub(crate) struct Secret {
    versions: BTreeMap<String, SecretVersion>,
    rotates: bool,
}

impl Secret {
    /// Attaches a stage to a version. The version that was current becomes the previous one.
    fn attach(&mut self, stage: &str, version: &str) {
        if stage == CURRENT {
            let former = self.versions.iter().find(|(_, held)| held.stages.contains(CURRENT)).map(|(id, _)| id.clone());
            if let Some(former) = former.filter(|former| former != version) {
                self.attach(PREVIOUS, &former);
            }
        }
        for held in self.versions.values_mut() {
            held.stages.remove(stage);
        }
        self.versions.entry(version.to_owned()).or_default().stages.insert(stage.to_owned());
    }
}

impl Account {
    /// Gives a secret a new current value, as a rotation does at its end: the former one becomes the previous one.
    pub fn set_secret(&mut self, id: &str, value: &Value) {
        self.messages += 1;
        let version = format!("version-{}", self.messages);
        let secret = self.secrets.entry(id.to_owned()).or_default();
        secret.versions.entry(version.clone()).or_default().value = Some(value.to_string());
        secret.attach(CURRENT, &version);
    }

    /// Attaches a stage to a version, which is made without a value if the secret does not have it.
    pub fn stage_secret(&mut self, id: &str, stage: &str, version: &str) {
        self.secrets.entry(id.to_owned()).or_default().attach(stage, version);
    }

    /// Switches a secret's rotation on or off.
    pub fn set_rotation(&mut self, id: &str, rotates: bool) {
        self.secrets.entry(id.to_owned()).or_default().rotates = rotates;
    }

    /// The version of a secret at a stage, with its id.
    pub fn secret(&self, id: &str, stage: &str) -> Option<(String, SecretVersion)> {
        let mut versions = self.secrets.get(id)?.versions.iter();
        versions
            .find(|(_, version)| version.stages.contains(stage))
            .map(|(version, held)| (version.clone(), held.clone()))
    }

    /// Denies all reads of secrets, or allows them again.
    pub fn deny_secrets(&mut self, denied: bool) {
        self.secrets_denied = denied;
    }

    pub(crate) fn secrets_manager(&mut self, operation: &str, request: &Value) -> Served {
        if self.secrets_denied {
            return Err(Refusal::new("AccessDeniedException", "denied"));
        }
        let id = name_of(text(request, "SecretId")?);
        let secret = self.secrets.get_mut(id).ok_or_else(|| not_found(id))?;
        match operation {
            "DescribeSecret" => {
                only(request, &["SecretId"])?;
                let stages: BTreeMap<_, _> = secret.versions.iter().map(|(id, held)| (id, &held.stages)).collect();
                Ok(json!({"ARN": secret_arn(id), "Name": id, "RotationEnabled": secret.rotates,
                          "VersionIdsToStages": stages}))
            }
            "GetSecretValue" => {
                only(request, &["SecretId", "VersionId", "VersionStage"])?;
                let (wanted, stage) = (request["VersionId"].as_str(), request["VersionStage"].as_str());
                let stage = stage.or(wanted.is_none().then_some(CURRENT));
                let fits = |version: &str, held: &SecretVersion| {
                    stage.is_none_or(|stage| held.stages.contains(stage))
                        && wanted.is_none_or(|wanted| wanted == version)
                };
                let found = secret.versions.iter().find(|(version, held)| fits(version, held));
                let (version, held) = found.ok_or_else(|| not_found(id))?;
                let value = held.value.as_ref().ok_or_else(|| not_found(version))?;
                Ok(json!({"VersionId": version, "SecretString": value, "VersionStages": held.stages}))
            }
            "PutSecretValue" => {
                only(request, &["SecretId", "ClientRequestToken", "SecretString", "VersionStages", "RotationToken"])?;
                let (version, value) = (text(request, "ClientRequestToken")?, text(request, "SecretString")?);
                let held = secret.versions.entry(version.to_owned()).or_default();
                if held.value.as_ref().is_some_and(|other| other != value) {
                    return Err(Refusal::new("ResourceExistsException", version));
                }
                held.value = Some(value.to_owned());
                let stages = request["VersionStages"].as_array().cloned().unwrap_or_else(|| vec![json!(CURRENT)]);
                for stage in &stages {
                    let stage = stage.as_str().ok_or_else(|| invalid("a stage is not a text"))?;
                    secret.attach(stage, version);
                }
                Ok(json!({"VersionId": version, "VersionStages": stages}))
            }
            _ => {
                only(request, &["SecretId", "VersionStage", "MoveToVersionId", "RemoveFromVersionId"])?;
                let (stage, to) = (text(request, "VersionStage")?, text(request, "MoveToVersionId")?);
                let from = request["RemoveFromVersionId"].as_str();
                let holder = secret.versions.iter().find(|(_, held)| held.stages.contains(stage)).map(|(id, _)| id);
                if holder.is_some_and(|holder| from != Some(holder)) {
                    return Err(Refusal::new("InvalidParameterException", format!("{stage} is at another version")));
                }
                if secret.versions.get(to).is_none_or(|version| version.value.is_none()) {
                    return Err(Refusal::new("InvalidRequestException", format!("{to} has no value")));
                }
                secret.attach(stage, to);
                Ok(json!({"ARN": secret_arn(id), "Name": id}))
            }
        }
    }
}

/// The ARN of the secret with this name.
pub fn secret_arn(name: &str) -> String {
    format!("{ARN_PREFIX}{name}{ARN_SUFFIX}")
}

/// The name of a secret that is given by name or by ARN.
fn name_of(id: &str) -> &str {
    id.strip_prefix(ARN_PREFIX).and_then(|rest| rest.strip_suffix(ARN_SUFFIX)).unwrap_or(id)
}

fn not_found(what: &str) -> Refusal {
    Refusal::new("ResourceNotFoundException", what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Defects;

    #[test]
    fn stages_move_as_in_secrets_manager() {
        let mut account = Account::new(|| jiff::Timestamp::UNIX_EPOCH, Defects::default());
        account.set_secret("app", &json!("one"));
        let (first, _) = account.secret("app", CURRENT).unwrap();
        account.stage_secret("app", "AWSPENDING", "token");
        let move_current = json!({"SecretId": secret_arn("app"), "VersionStage": CURRENT, "MoveToVersionId": "token",
                                  "RemoveFromVersionId": first});
        let refused = account.call("UpdateSecretVersionStage", &move_current, false);
        assert!(refused.is_err(), "a version without a value does not become current");
        let put = json!({"SecretId": "app", "ClientRequestToken": "token", "SecretString": "two",
                         "VersionStages": ["AWSPENDING"]});
        account.call("PutSecretValue", &put, false).unwrap();
        account.call("UpdateSecretVersionStage", &move_current, false).unwrap();
        assert_eq!(account.secret("app", CURRENT).unwrap().0, "token");
        assert_eq!(account.secret("app", PREVIOUS).unwrap().0, first);
        let again = account.call("UpdateSecretVersionStage", &move_current, false);
        assert!(again.is_err(), "the stage is no longer at the first version");
    }
}

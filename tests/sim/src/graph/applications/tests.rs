use serde_json::{Value, json};

use crate::{
    App, Resource,
    testing::{CLIENT, CONTOSO, HOME, Response, Rig, rig},
};

const ROTATOR: &str = "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb";

async fn call(rig: &Rig, role: &str, method: &str, path: &str, body: Option<Value>) -> Response {
    let token = rig.sim.issue_token(HOME, ROTATOR, &[role], Resource::Graph);
    let url = format!("{}/v1.0{path}", rig.sim.graph_url());
    let request = rig.http.request(method.parse().unwrap(), url).bearer_auth(token);
    rig.send(match body {
        Some(body) => request.json(&body),
        None => request,
    })
    .await
}

#[tokio::test]
async fn owner_adds_uses_and_removes_a_secret() {
    let rig = rig().await;
    let owned = "Application.ReadWrite.OwnedBy";
    let path = format!("/applications(appId='{CLIENT}')");
    let add = json!({"passwordCredential": {"displayName": "next"}});
    let stranger = call(&rig, owned, "POST", &format!("{path}/addPassword"), Some(add.clone())).await;
    assert_eq!(
        (stranger.status, stranger.json()["error"]["code"].as_str()),
        (403, Some("Authorization_RequestDenied"))
    );
    rig.sim.register_app(App {
        client_id: CLIENT.into(),
        home_tenant_id: HOME.into(),
        owners: vec![ROTATOR.into()],
        ..App::default()
    });
    rig.sim.grant(CONTOSO, CLIENT, &["SecurityIncident.Read.All"]);
    let added = call(&rig, owned, "POST", &format!("{path}/addPassword"), Some(add)).await.json();
    let secret = added["secretText"].as_str().unwrap();
    let form = [
        ("grant_type", "client_credentials"),
        ("client_id", CLIENT),
        ("client_secret", secret),
        ("scope", "https://graph.microsoft.com/.default"),
    ];
    assert_eq!(rig.token(CONTOSO, &form).await.status, 200);
    let listed = call(&rig, owned, "GET", &format!("{path}?$select=id,passwordCredentials"), None).await.json();
    assert_eq!(listed["passwordCredentials"][0]["secretText"], Value::Null);
    let remove = json!({"keyId": added["keyId"]});
    let removed = call(&rig, owned, "POST", &format!("{path}/removePassword"), Some(remove.clone())).await;
    assert_eq!(removed.status, 204);
    assert_eq!(rig.token(CONTOSO, &form).await.status, 401);
    assert_eq!(call(&rig, owned, "POST", &format!("{path}/removePassword"), Some(remove)).await.status, 400);
}

#[tokio::test]
async fn registration_is_created_found_and_updated() {
    let rig = rig().await;
    let all = "Application.ReadWrite.All";
    let graph = Resource::Graph.app_id();
    let roles = call(&rig, all, "GET", &format!("/servicePrincipals(appId='{graph}')?$select=appRoles"), None).await;
    let role = roles.json()["appRoles"].as_array().unwrap()[0]["id"].clone();
    let made = call(
        &rig,
        all,
        "POST",
        "/applications",
        Some(json!({
            "displayName": "Mandate", "signInAudience": "AzureADMultipleOrgs",
            "web": {"redirectUris": ["https://x.example/consent/callback"]},
            "requiredResourceAccess": [{"resourceAppId": graph, "resourceAccess": [{"id": role, "type": "Role"}]}],
        })),
    )
    .await;
    assert_eq!(made.status, 201, "{}", made.text);
    let id = made.json()["id"].as_str().unwrap().to_owned();
    let patch =
        json!({"groupMembershipClaims": "DirectoryRole", "servicePrincipalLockConfiguration": {"isEnabled": true}});
    assert_eq!(call(&rig, all, "PATCH", &format!("/applications/{id}"), Some(patch)).await.status, 204);
    let filter = "/applications?$filter=displayName%20eq%20'Mandate'";
    let found = call(&rig, all, "GET", filter, None).await.json()["value"][0].clone();
    assert_eq!((&found["id"], &found["groupMembershipClaims"]), (&json!(id), &json!("DirectoryRole")));
    assert_eq!(found["requiredResourceAccess"][0]["resourceAccess"][0]["id"], role);
    assert_eq!(found["servicePrincipalLockConfiguration"]["isEnabled"], true);
    let unknown = call(&rig, all, "POST", "/applications", Some(json!({"displayName": "x", "colour": 1}))).await;
    assert_eq!(unknown.status, 400);
}

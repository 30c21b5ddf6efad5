//! Reading and changing incidents while somebody waits.

use serde_json::json;
use sim::IncidentSeed;

use super::feed::{Feed, SURFACES, TENANT};

#[tokio::test]
async fn lists_are_newest_first_and_page_without_gap_or_repeat() {
    for surface in SURFACES {
        let feed = Feed::start(surface).await;
        for number in 0..130 {
            feed.put(number * 61);
        }
        let path = format!("/tenants/{TENANT}/incidents");
        let (mut seen, mut query) = (Vec::new(), "limit=40".to_owned());
        loop {
            let (status, page) = feed.call("GET", &path, &query, None).await;
            assert_eq!(status, 200, "{page}");
            let rows = page["incidents"].as_array().unwrap().clone();
            assert!(rows.len() <= 40);
            seen.extend(rows.into_iter().map(|row| (row["last_updated"].as_str().unwrap().to_owned(), row)));
            match page["next"].as_str() {
                Some(next) => query = format!("next={next}"),
                None => break,
            }
            feed.advance(20);
        }
        assert_eq!(seen.len(), 130, "{surface}");
        assert!(seen.windows(2).all(|pair| pair[0].0 > pair[1].0));
        assert_eq!(seen[0].1["change"], json!(null));
        assert_eq!(seen[0].1["schema"], "incident/1");
        assert!(seen[0].1["incident"]["alerts"].is_array());
    }
}

#[tokio::test]
async fn filters_hold_on_both_surfaces() {
    for surface in SURFACES {
        let feed = Feed::start(surface).await;
        let seed = |status: &str, severity: &str, assigned_to: Option<&str>| IncidentSeed {
            status: status.into(),
            severity: severity.into(),
            assigned_to: assigned_to.map(Into::into),
            ..IncidentSeed::default()
        };
        let one = feed.put_seed(seed("inProgress", "high", Some("o'neil@contoso.example")));
        let two = feed.put_seed(seed("active", "low", None));
        let three = feed.put_seed(seed("resolved", "high", None));
        let path = format!("/tenants/{TENANT}/incidents");
        for (query, expected) in [
            ("status=in_progress", vec![&one]),
            ("status=active", vec![&two]),
            ("severity=high", vec![&one, &three]),
            ("assigned_to=o%27neil%40contoso.example", vec![&one]),
            ("severity=high&status=resolved", vec![&three]),
            ("status=redirected", vec![]),
        ] {
            let (status, page) = feed.call("GET", &path, query, None).await;
            assert_eq!(status, 200, "{page}");
            let mut ids: Vec<&str> =
                page["incidents"].as_array().unwrap().iter().map(|row| row["incident_id"].as_str().unwrap()).collect();
            ids.sort_unstable();
            let mut expected: Vec<&str> = expected.into_iter().map(String::as_str).collect();
            expected.sort_unstable();
            assert_eq!(ids, expected, "{query} on {surface}");
        }
    }
}

#[tokio::test]
async fn one_incident_is_read_and_changed() {
    for surface in SURFACES {
        let feed = Feed::start(surface).await;
        let id = feed.put(60);
        let path = format!("/tenants/{TENANT}/incidents/{id}");
        let (status, incident) = feed.call("GET", &path, "", None).await;
        assert_eq!((status, incident["incident_id"].as_str()), (200, Some(id.as_str())));
        let body = json!({"status": "resolved", "classification": "true_positive", "determination": "malware",
                          "assigned_to": "ada@partner.example", "tags": ["seen"], "comment": "done"});
        let (status, changed) = feed.call("PATCH", &path, "", Some(&body.to_string())).await;
        assert_eq!(status, 200, "{changed}");
        let now = feed.local.sim.incident(TENANT, &id).unwrap();
        assert_eq!((now.status.as_str(), now.determination.as_str()), ("resolved", "malware"));
        assert_eq!(
            (now.assigned_to.as_deref(), now.custom_tags),
            (Some("ada@partner.example"), vec!["seen".to_owned()])
        );
        assert_eq!(now.comments.len(), 1);
        let (status, _) = feed.call("PATCH", &path, "", Some(r#"{"assigned_to": null}"#)).await;
        assert_eq!(status, 200);
        assert_eq!(feed.local.sim.incident(TENANT, &id).unwrap().assigned_to.filter(|name| !name.is_empty()), None);
        let (status, _) = feed.call("GET", &path, "format=ocsf", None).await;
        assert_eq!(status, 200);
    }
}

#[tokio::test]
async fn what_is_not_there_or_not_allowed_is_said_so() {
    let feed = Feed::start(SURFACES[0]).await;
    let id = feed.put(60);
    let other = "22222222-2222-4333-8444-000000000001";
    for (method, path, query, status, code) in [
        ("GET", format!("/tenants/{TENANT}/incidents/999999"), "", 404, "not_found"),
        ("GET", format!("/tenants/{TENANT}/incidents/abc"), "", 404, "not_found"),
        ("GET", format!("/tenants/{other}/incidents"), "", 404, "not_found"),
        ("GET", "/tenants/common/incidents".into(), "", 404, "not_found"),
        ("GET", format!("/tenants/{}/incidents", TENANT.to_uppercase()), "limit=1", 200, ""),
        ("GET", format!("/tenants/{TENANT}/incidents"), "limit=0", 400, "invalid_request"),
        ("PATCH", format!("/tenants/{TENANT}/incidents/{id}"), "", 400, "invalid_request"),
        ("DELETE", format!("/tenants/{TENANT}/incidents/{id}"), "", 404, "not_found"),
    ] {
        // A tenant in another letter case is another path, and no tenant. This one has no letters.
        let (answered, body) = feed.call(method, &path, query, Some("{}")).await;
        assert_eq!(answered, status, "{method} {path}: {body}");
        if !code.is_empty() {
            assert_eq!(body["code"], code);
        }
    }
    let mut unsigned = crate::local::request("GET", &format!("/tenants/{TENANT}/incidents"), "", None);
    unsigned["requestContext"]["authorizer"].take();
    let answer = feed.app.handle(unsigned, super::feed::invocation(std::time::Duration::from_secs(5))).await.unwrap();
    assert_eq!(answer["statusCode"], 403);
    assert!(answer["body"].as_str().unwrap().contains("unauthorized_caller"));
}

#[tokio::test]
async fn the_fleet_is_read_at_once_and_who_fails_is_named() {
    let feed = Feed::start(SURFACES[0]).await;
    let other: shared::entra::TenantId = "22222222-2222-4333-8444-000000000001".parse().unwrap();
    feed.local.customer(&other.to_string(), "fabrikam.example", &["Incident.Read.All"]);
    feed.registry.create_tenant(&super::feed::active(other, SURFACES[1])).await.unwrap();
    let broken: shared::entra::TenantId = "33333333-2222-4333-8444-000000000001".parse().unwrap();
    feed.local.customer(&broken.to_string(), "northwind.example", &[]);
    feed.registry.create_tenant(&super::feed::active(broken, SURFACES[0])).await.unwrap();
    for number in 0..5 {
        feed.put(number * 60);
        let last_update = feed.clock.now() - jiff::SignedDuration::from_secs(number * 60 + 30);
        feed.local.sim.put_incident(
            &other.to_string(),
            IncidentSeed { last_update: Some(last_update), ..IncidentSeed::default() },
        );
    }
    let (mut seen, mut query) = (Vec::new(), "limit=4".to_owned());
    loop {
        let (status, page) = feed.call("GET", "/incidents", &query, None).await;
        assert_eq!(status, 200, "{page}");
        assert_eq!(
            page["failures"],
            json!([{"tenant_id": broken, "code": "tenant_not_active", "reason": "consent_missing"}])
        );
        seen.extend(
            page["incidents"].as_array().unwrap().iter().map(|row| row["last_updated"].as_str().unwrap().to_owned()),
        );
        match page["next"].as_str() {
            Some(next) => query = format!("next={next}"),
            None => break,
        }
    }
    assert_eq!(seen.len(), 10);
    assert!(seen.windows(2).all(|pair| pair[0] > pair[1]), "{seen:?}");
}

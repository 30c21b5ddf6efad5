use proptest::prelude::*;

use super::*;
use crate::incident::record::Alerts;

fn record(time: &str, status: &str, alerts: &[&str]) -> Record {
    let alerts: Vec<String> = alerts.iter().map(|id| format!(r#"{{"id":"{id}"}}"#)).collect();
    let json =
        format!(r#"{{"id":"7","lastUpdateDateTime":"{time}","status":"{status}","alerts":[{}]}}"#, alerts.join(","));
    let tenant = "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap();
    Record::parse(json.as_bytes(), &tenant, IncidentApi::Graph, Alerts::Included).unwrap()
}

const NOW: &str = "2026-06-01T00:00:00Z";

fn at(time: &str) -> ReadTime {
    ReadTime { ours: time.parse().unwrap(), microsofts: Some(time.parse().unwrap()) }
}

/// Compares long after all times of the records.
fn compared(delivered: Option<&DeliveredVersion>, seen: &Record, api: IncidentApi) -> VersionComparison {
    compare(delivered, seen, api, at(NOW))
}

fn new(change: Change, ordinal: u32) -> VersionComparison {
    VersionComparison::New { change, ordinal }
}

#[test]
fn changes_are_named_by_the_rule_of_the_interface() {
    let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00.0000001Z");
    let table = [
        ("active", "redirected", Change::Merged),
        ("resolved", "redirected", Change::Merged),
        ("active", "resolved", Change::Closed),
        ("redirected", "resolved", Change::Closed),
        ("resolved", "inProgress", Change::Reopened),
        ("active", "inProgress", Change::Updated),
        ("redirected", "redirected", Change::Updated),
        ("resolved", "resolved", Change::Updated),
        ("redirected", "active", Change::Updated),
    ];
    for (before, now, change) in table {
        let known = DeliveredVersion::of(&record(early, before, &[]), 1, IncidentApi::Graph);
        assert_eq!(
            compared(Some(&known), &record(late, now, &[]), IncidentApi::Graph),
            new(change, 1),
            "{before} → {now}"
        );
    }
    assert_eq!(compared(None, &record(early, "resolved", &[]), IncidentApi::Graph), new(Change::Created, 1));
}

#[test]
fn one_time_may_have_several_versions() {
    let time = "2026-01-01T00:00:00Z";
    let first = record(time, "active", &["a"]);
    let known = DeliveredVersion::of(&first, 1, IncidentApi::Graph);
    assert_eq!(compared(Some(&known), &first, IncidentApi::Graph), VersionComparison::Same);
    let second = record(time, "active", &["a", "b"]);
    assert_eq!(compared(Some(&known), &second, IncidentApi::Graph), new(Change::Updated, 2));
    let known = DeliveredVersion::of(&second, 2, IncidentApi::Graph);
    assert_eq!(compared(Some(&known), &record(time, "resolved", &["a"]), IncidentApi::Graph), new(Change::Closed, 3));
    assert_eq!(
        compared(Some(&known), &record("2025-12-31T23:59:59.9999999Z", "active", &[]), IncidentApi::Graph),
        VersionComparison::Stale
    );
    assert_eq!(
        Version {
            tenant_id: "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap(),
            api: IncidentApi::Graph,
            record: &second,
            change: None,
            ordinal: 2,
            fetched_at: Timestamp::UNIX_EPOCH,
        }
        .key(),
        "11111111-2222-4333-8444-abcdefabcdef/7/2026-01-01T00:00:00Z~2"
    );
}

#[test]
fn other_api_is_compared_to_the_millisecond() {
    let known =
        DeliveredVersion::of(&record("2026-01-01T00:00:00.1234567Z", "active", &["a"]), 1, IncidentApi::Defender);
    assert_eq!(
        compared(Some(&known), &record("2026-01-01T00:00:00.1230000Z", "active", &["z"]), IncidentApi::Graph),
        VersionComparison::SameOnOtherApi
    );
    assert_eq!(
        compared(Some(&known), &record("2026-01-01T00:00:00.124Z", "active", &["a"]), IncidentApi::Graph),
        new(Change::Updated, 1)
    );
    assert_eq!(
        compared(Some(&known), &record("2026-01-01T00:00:00.122Z", "active", &["a"]), IncidentApi::Graph),
        VersionComparison::Stale
    );
}

#[test]
fn alerts_that_the_other_api_could_not_send_are_a_version() {
    let time = "2026-01-01T00:00:00.1234567Z";
    let without = DeliveredVersion::of(&record(time, "active", &[]), 1, IncidentApi::Graph);
    let seen =
        |alerts: &[&str]| compare(Some(&without), &record(time, "active", alerts), IncidentApi::Defender, at(NOW));
    assert_eq!(seen(&[]), VersionComparison::SameOnOtherApi);
    assert!(matches!(seen(&["a"]), VersionComparison::New { ordinal: 2, .. }));
}

#[test]
fn delivered_version_survives_packing() {
    let known =
        DeliveredVersion::of(&record("2026-01-01T00:00:00.1234567Z", "redirected", &["a"]), 3, IncidentApi::Defender);
    for change in CHANGE_MARKS.map(|(change, _)| Some(change)).into_iter().chain([None]) {
        let known = DeliveredVersion { change, ..known.clone() };
        assert_eq!(known.to_string().parse::<DeliveredVersion>(), Ok(known));
    }
    let of_another_release = format!("{} later", known.common_parts());
    assert_eq!(of_another_release.parse(), Ok(DeliveredVersion { change: None, ..known }));
}

/// Delivers records one after the other and returns their keys' ends and their changes. `None`: a stale read.
fn delivered_of(records: &[(&str, Record)]) -> Vec<Option<(Change, String)>> {
    let (api, mut delivered) = (IncidentApi::Graph, None::<DeliveredVersion>);
    let deliver = |(now, seen): &(&str, Record)| {
        let VersionComparison::New { change, ordinal } = compare(delivered.as_ref(), seen, api, at(now)) else {
            return None;
        };
        let first = DeliveredVersion::of(seen, ordinal, api);
        let next = delivered.as_ref().map_or(first, |before| before.followed_by(seen, ordinal, api, at(now)));
        let packed: DeliveredVersion = next.to_string().parse().unwrap();
        delivered = Some(next.notes().iter().fold(packed, |version, notes| version.with_notes(notes)));
        assert_eq!(delivered.as_ref(), Some(&next), "all of it is stored");
        assert_eq!(next.change, Some(change));
        Some((change, format!("{}~{ordinal}", seen.last_updated)))
    };
    records.iter().map(deliver).collect()
}

#[test]
fn time_in_the_future_may_be_put_right() {
    let delivery = |change, key: &str| Some((change, key.to_owned()));
    let (t1, t2, t3) = ("2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z", "2026-01-01T02:00:00Z");
    let future = "2027-01-01T00:00:00Z";
    assert_eq!(
        delivered_of(&[
            (t1, record(future, "active", &[])),
            (t2, record(t2, "active", &[])),
            (t3, record(t3, "resolved", &[])),
        ]),
        [
            delivery(Change::Created, "2027-01-01T00:00:00Z~1"),
            delivery(Change::Updated, "2026-01-01T01:00:00Z~1"),
            delivery(Change::Closed, "2026-01-01T02:00:00Z~1"),
        ],
    );
    // A time that was delivered before has another key.
    assert_eq!(
        delivered_of(&[
            (t1, record(t1, "active", &[])),
            (t1, record(future, "active", &[])),
            (t1, record("2028-01-01T00:00:00Z", "active", &[])),
            (t2, record(t1, "resolved", &[])),
            (t2, record(t1, "resolved", &[])),
        ])[3..],
        [delivery(Change::Closed, "2026-01-01T00:00:00Z~2"), None],
    );
    // Once the time has come, an older record is a stale read again.
    assert_eq!(
        delivered_of(&[(t1, record(t2, "active", &[])), (t3, record(t1, "active", &[]))]),
        [delivery(Change::Created, "2026-01-01T01:00:00Z~1"), None],
    );
}

#[test]
fn future_is_judged_by_date_and_by_our_clock() {
    let known = DeliveredVersion::of(&record("2026-01-01T01:00:00Z", "active", &[]), 1, IncidentApi::Graph);
    let older = record("2026-01-01T00:00:00Z", "active", &[]);
    let read = |ours: &str, date: Option<&str>| {
        let read_at = ReadTime { ours: ours.parse().unwrap(), microsofts: date.map(|date| date.parse().unwrap()) };
        compare(Some(&known), &older, IncidentApi::Graph, read_at) != VersionComparison::Stale
    };
    assert!(read("2026-01-01T00:30:00Z", Some("2026-01-01T00:30:00Z")));
    assert!(!read("2026-01-01T00:30:00Z", None), "a response without a date");
    assert!(!read("2026-01-01T00:30:00Z", Some("2026-01-01T01:00:00Z")), "our clock is behind");
    assert!(!read("2026-01-01T01:00:00Z", Some("2026-01-01T00:30:00Z")), "the date is behind");
    assert!(!read("2026-01-01T00:59:56Z", Some("2026-01-01T00:59:56Z")), "Microsoft's servers differ");
}

#[test]
fn older_record_shown_for_an_hour_is_a_version() {
    let mut known = DeliveredVersion::of(&record("2026-01-01T00:00:00Z", "resolved", &[]), 1, IncidentApi::Graph);
    let older = record("2025-12-31T00:00:00Z", "active", &[]);
    assert_eq!(compared(Some(&known), &older, IncidentApi::Graph), VersionComparison::Stale);
    known.older_since = Some("2026-05-31T23:00:01Z".parse().unwrap());
    assert_eq!(compared(Some(&known), &older, IncidentApi::Graph), VersionComparison::Stale);
    known.older_since = Some("2026-05-31T23:00:00Z".parse().unwrap());
    assert_eq!(compared(Some(&known), &older, IncidentApi::Graph), new(Change::Reopened, 2));
    assert_eq!(compared(Some(&known), &older, IncidentApi::Defender), new(Change::Reopened, 2), "on the other API");
    let next = known.followed_by(&older, 2, IncidentApi::Graph, at(NOW));
    assert_eq!((next.notes(), next.ordinal), (None, 2));
}

#[test]
fn notes_of_another_version_are_ignored() {
    let mut known = DeliveredVersion::of(&record("2026-01-01T00:00:00Z", "active", &[]), 1, IncidentApi::Graph);
    known.older_since = Some(NOW.parse().unwrap());
    let notes = known.notes().unwrap();
    let other = DeliveredVersion::of(&record("2026-01-01T00:00:01Z", "active", &[]), 1, IncidentApi::Graph);
    for odd in [notes.as_str(), "", "|", "a|b|c|d"] {
        assert_eq!(other.clone().with_notes(odd), other, "{odd}");
    }
}

proptest! {
    /// Without a time in the future and without a long stale read, what is delivered never grows older, whatever is
    /// read in whatever order.
    #[test]
    fn versions_in_the_past_never_grow_older(seconds in proptest::collection::vec(0..60_u8, 1..20)) {
        let records: Vec<_> = seconds
            .iter()
            .map(|second| (NOW, record(&format!("2026-01-01T00:00:{second:02}Z"), "active", &[])))
            .collect();
        let keys: Vec<_> = delivered_of(&records).into_iter().flatten().map(|(_, key)| key).collect();
        prop_assert!(keys.is_sorted_by(|one, next| one < next), "{keys:?}");
    }

    /// A time that was put right never silences an incident: whatever was delivered with a time in the future, the next
    /// record with a time of its own is delivered.
    #[test]
    fn no_time_in_the_future_silences_an_incident(months in proptest::collection::vec(1..12_u8, 1..8)) {
        let mut records = vec![("2026-01-01T00:00:00Z", record("2026-01-01T00:00:00Z", "active", &[]))];
        let future = |month: &u8| record(&format!("2027-{month:02}-01T00:00:00Z"), "active", &[]);
        records.extend(months.iter().map(|month| ("2026-01-01T00:00:10Z", future(month))));
        records.push(("2026-01-01T00:02:00Z", record("2026-01-01T00:01:00Z", "active", &[])));
        let last = delivered_of(&records).pop().flatten();
        prop_assert_eq!(last, Some((Change::Updated, "2026-01-01T00:01:00Z~1".to_owned())));
    }
}

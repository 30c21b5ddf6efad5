//! `work`: one part of the hot path, so many times. `instructions` counts what it costs.

use std::{io, process::ExitCode};

use devstack::Failed;
use serde_json::value::RawValue;
use shared::{
    delivery::{
        bucket::{Batch, Format},
        events::IncidentEvents,
    },
    incident::{
        ocsf::write_incident_finding,
        record::{Alerts, Record},
        version::{Change, DeliveredVersion, ReadTime, Version, VersionComparison, compare},
    },
    microsoft::IncidentApi,
    registry::versions::NewVersion,
    tenant::TenantId,
};

/// An incident as Defender sends it.
const INCIDENT: &str = include_str!("../../incident.json");

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (part, times) = (arguments.next().unwrap_or_default(), arguments.next().and_then(|times| times.parse().ok()));
    match times.map_or(Err(Failed("usage: work PART TIMES".to_owned())), |times| work(&part, times)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn work(part: &str, times: u32) -> Result<(), Failed> {
    let failed = |what: &str| Failed(what.to_owned());
    let tenant: TenantId =
        "11111111-2222-4333-8444-abcdefabcdef".parse().map_err(|_| failed("the tenant is not a GUID"))?;
    let sent: Box<RawValue> = serde_json::from_str(INCIDENT).map_err(|error| failed(&error.to_string()))?;
    let api = IncidentApi::Defender;
    let parse = || Record::parse(sent.get().as_bytes(), &tenant, api, Alerts::Included);
    let record = parse().map_err(|why| failed(why.as_str()))?;
    let (change, fetched_at) = (Some(Change::Created), record.last_updated);
    let version = Version { tenant_id: tenant, api, record: &record, change, ordinal: 1, fetched_at };
    let delivered = DeliveredVersion::of(&record, 1, api);
    // The choice is made once. In the loop it would be a part of the count, and the compiler could take the work out of it.
    let once: Box<dyn Fn() -> bool> = match part {
        "parse" => Box::new(|| parse().is_ok()),
        "convert" => Box::new(|| write_incident_finding(&version, io::sink()).is_ok()),
        "compress" => Box::new(|| compress(&version, &delivered).is_ok()),
        "compare" => Box::new(|| {
            let read_at = ReadTime { ours: fetched_at, microsofts: None };
            compare(Some(&delivered), &record, api, read_at) == VersionComparison::Same
        }),
        _ => return Err(failed("there is no such part")),
    };
    for _ in 0..times {
        if !once() {
            return Err(failed("the work failed"));
        }
    }
    Ok(())
}

/// Writes a hundred versions into one batch, as a page of incidents is.
fn compress(version: &Version<'_>, delivered: &DeliveredVersion) -> shared::error::Result<()> {
    let mut batch = Batch::new(Format::Envelope, IncidentEvents::None);
    for _ in 0..100 {
        batch.add(version, NewVersion { version: delivered.clone(), open_before: None })?;
    }
    std::hint::black_box(batch.size());
    Ok(())
}

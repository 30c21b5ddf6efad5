use jiff::SignedDuration;

use super::*;

fn lines(level: LevelFilter, work: impl FnOnce()) -> Vec<Value> {
    let buffer = Arc::new(Mutex::new(Vec::<u8>::new()));
    let clock = Clock::by_hand("2026-11-22T10:00:00.123Z".parse().unwrap());
    let dimensions = MetricDimensions {
        table_name: "mandate-prod-table".into(),
        function_name: "mandate-prod-fetch".into(),
        function_version: "7".into(),
    };
    let layer = JsonLines::new(level, clock, buffer.clone()).with_dimensions(dimensions);
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), work);
    let text = String::from_utf8(buffer.lock().unwrap().clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn line_is_flat_and_has_the_fields_of_its_spans() {
    let lines = lines(LevelFilter::INFO, || {
        let _request = tracing::info_span!("invocation", request_id = "r-1").entered();
        let _tenant = tracing::info_span!("tenant", tenant_id = "t-1").entered();
        tracing::warn!(audit = true, delivered = 3_u64, "a\r\nb");
        tracing::debug!("not shown");
    });
    assert_eq!(
        lines,
        [json!({"timestamp": "2026-11-22T10:00:00.123Z", "level": "WARN", "message": "a\r\nb", "request_id": "r-1",
                "tenant_id": "t-1", "audit": true, "delivered": 3})]
    );
}

#[test]
fn invocation_has_one_line_of_metrics_at_its_end() {
    let tenant = "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap();
    let lag = |seconds| Metric::seconds("LagSeconds", SignedDuration::from_secs(seconds));
    let lines = lines(LevelFilter::ERROR, || {
        let _request = tracing::info_span!("invocation", request_id = "r-1").entered();
        let _tenant = tracing::info_span!("tenant", tenant_id = "t-1").entered();
        metrics(None, &[Metric::count("Polled", 2), Metric::gauge("CredentialDaysLeft", 10.5)]);
        metrics(Some(&tenant), &[Metric::count("TenantPaused", 1)]);
        line_with_metrics(&[Metric::count("Delivered", 2), lag(5)], || {
            tracing::info!(target: RECORD, outcome = "done", "tenant worked on");
        });
        line_with_metrics(&[Metric::count("Polled", 1), lag(7)], || {
            tracing::info!(target: METRICS, checked = 3_u64, "metrics");
        });
    });
    let common = json!({"timestamp": "2026-11-22T10:00:00.123Z", "level": "INFO", "request_id": "r-1"});
    let with = |more: Value| {
        let mut line = common.clone();
        line.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
        line
    };
    assert_eq!(lines[0], with(json!({"message": "metrics", "tenant_id": tenant, "TenantPaused": 1.0})));
    let worked = json!({"message": "tenant worked on", "tenant_id": "t-1", "outcome": "done", "Delivered": 2.0,
                        "LagSeconds": 5.0});
    assert_eq!(lines[1], with(worked));
    let definition = |name: &str, unit: &str| json!({"Name": name, "Unit": unit});
    let embedded = json!({
        "Timestamp": 1_795_341_600_123_i64,
        "CloudWatchMetrics": [{"Namespace": "Mandate", "Dimensions": [["TableName"]], "Metrics": [
            definition("Polled", "Count"), definition("CredentialDaysLeft", "None"), definition("TenantPaused", "Count"),
            definition("Delivered", "Count"), definition("LagSeconds", "Seconds"),
        ]}],
    });
    let metrics = json!({
        "message": "metrics", "_aws": embedded, "checked": 3, "Polled": 3.0, "CredentialDaysLeft": 10.5,
        "TenantPaused": 1.0, "Delivered": 2.0, "LagSeconds": [5.0, 7.0], "TableName": "mandate-prod-table",
        "FunctionName": "mandate-prod-fetch", "FunctionVersion": "7",
    });
    assert_eq!(lines[2], with(metrics));
    assert_eq!(lines.len(), 3);
}

#[test]
fn failures_count_by_function_and_version() {
    let lines = lines(LevelFilter::ERROR, || {
        let _request = tracing::info_span!("invocation", request_id = "r-1").entered();
        metrics(None, &[Metric::count("Delivered", 2)]);
        internal_failure();
    });
    let dimensions = |at: usize| lines[0]["_aws"]["CloudWatchMetrics"][at]["Dimensions"].clone();
    assert_eq!(dimensions(0), json!([["TableName"]]));
    assert_eq!(dimensions(1), json!([["FunctionName"], ["FunctionName", "FunctionVersion"]]));
    assert_eq!((&lines[0]["Delivered"], &lines[0]["InternalFailure"]), (&json!(2.0), &json!(1.0)));
}

#[test]
fn first_invocation_of_a_process_counts_as_cold_start() {
    let buffer = Arc::new(Mutex::new(Vec::<u8>::new()));
    let layer =
        JsonLines { is_cold: true.into(), ..JsonLines::new(LevelFilter::INFO, Clock::system(), buffer.clone()) };
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
        drop(tracing::info_span!("invocation", request_id = "r-1"));
        drop(tracing::info_span!("invocation", request_id = "r-2"));
    });
    let text = String::from_utf8(buffer.lock().unwrap().clone()).unwrap();
    let line: Value = serde_json::from_str(&text).expect("one line");
    assert_eq!((&line["ColdStarts"], &line["request_id"]), (&json!(1.0), &json!("r-1")));
}

#[test]
fn line_holds_at_most_a_hundred_values_of_a_metric() {
    let lines = lines(LevelFilter::INFO, || {
        let _request = tracing::info_span!("invocation", request_id = "r-1").entered();
        for second in 0..250 {
            let lag = Metric::seconds("LagSeconds", SignedDuration::from_secs(second));
            metrics(None, &[lag, Metric::count("Polled", 1)]);
        }
    });
    let values = |line: &Value| line["LagSeconds"].as_array().map(Vec::len);
    assert_eq!(lines.iter().map(values).collect::<Vec<_>>(), [Some(100), Some(100), Some(50)]);
    assert_eq!(lines.iter().filter_map(|line| line["Polled"].as_f64()).collect::<Vec<_>>(), [250.0]);
}

#[test]
fn audit_line_that_is_not_written_is_an_error() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let issued = || write_audit(|| tracing::info!(target: RECORD, audit = true, "issued"));
    lines(LevelFilter::ERROR, || assert_eq!(issued(), Ok(())));
    let full = JsonLines::new(LevelFilter::TRACE, Clock::system(), Arc::new(Mutex::new(Full)));
    let outcome = tracing::subscriber::with_default(tracing_subscriber::registry().with(full), issued);
    assert!(matches!(outcome, Err(Error::Internal(_))));
    let unwritten = tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::new(), issued);
    assert!(unwritten.is_err(), "a line without a subscriber");
}

#[test]
fn audit_and_metrics_are_written_at_any_level() {
    let lines = lines(LevelFilter::ERROR, || {
        metrics(None, &[Metric::count("Delivered", 2)]);
        tracing::info!(target: RECORD, audit = true, "issued");
        tracing::info!("not shown");
    });
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[1]["audit"], true);
}

#[test]
fn runtime_lines_name_the_request_and_repeat_nothing() {
    let lines = lines(LevelFilter::TRACE, || {
        let _invoke =
            tracing::info_span!(target: RUNTIME_SPAN, "invoke", requestId = "r-1", xrayTraceId = "x").entered();
        tracing::error!(target: "lambda_runtime::layers::api_response", "not read");
        tracing::error!(target: RUNTIME_PANIC_TARGET, "Diagnostic");
    });
    assert_eq!(
        lines,
        [
            json!({"timestamp": "2026-11-22T10:00:00.123Z", "level": "ERROR", "message": "not read", "request_id": "r-1"})
        ]
    );
}

#[test]
fn libraries_are_quiet_below_a_warning_at_any_level() {
    let lines = lines(LevelFilter::TRACE, || {
        tracing::trace!(target: "aws_smithy_runtime", "body");
        tracing::warn!(target: "hyper", "shown");
        tracing::trace!("ours");
    });
    let messages: Vec<_> = lines.iter().map(|line| line["message"].as_str().unwrap()).collect();
    assert_eq!(messages, ["shown", "ours"]);
}

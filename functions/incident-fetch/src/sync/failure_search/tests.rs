use proptest::prelude::*;

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_795_341_600 + second).unwrap()
}

fn span(from: i64, to: i64) -> Span {
    Span { from: at(from), to: Some(at(to)) }
}

/// A search whose window of `seconds` has failed twice, of a tenant that responds, with this list without alerts.
fn search_of(seconds: i64, suspect: Suspect, list: Option<ListWithoutAlerts>) -> (FailureSearch, Action) {
    let mut search = FailureSearch::new(Vec::new());
    search.last_error = Some(Error::DeadlineExceeded);
    let window = span(0, seconds);
    assert_eq!(search.on_failure(window, at(seconds), suspect), Action::Take(NextStep::Retry));
    assert_eq!(search.on_failure(window, at(seconds), suspect), Action::Probe);
    assert_eq!(search.on_probe(true), Action::ListWithoutAlerts);
    let action = search.on_list_without_alerts(list);
    (search, action)
}

fn narrow(width: i64) -> Action {
    Action::Take(NextStep::Narrow { width })
}

fn give_up(width: i64) -> Action {
    Action::Take(NextStep::GiveUp { next_width: Some(width) })
}

#[test]
fn failed_probe_gives_up_and_keeps_the_window() {
    let mut search = FailureSearch::new(Vec::new());
    search.on_failure(span(0, 60), at(60), Suspect::Outage);
    assert_eq!(search.on_failure(span(0, 60), at(60), Suspect::Outage), Action::Probe);
    assert_eq!(search.on_probe(false), give_up(60));
}

#[test]
fn other_half_shows_whether_a_half_is_worth_reading() {
    let (mut search, action) = search_of(60, Suspect::Outage, None);
    assert_eq!(action, Action::ReadOther(span(30, 60)));
    assert_eq!(search.on_other_window(OtherWindow::Readable, 3), narrow(30));
    // A row was read: the next halves need no other one.
    assert_eq!(search.on_failure(span(0, 30), at(60), Suspect::Outage), narrow(15));
}

#[test]
fn window_is_split_at_the_rows_that_are_not_delivered() {
    let rows = Some([at(10), at(20), at(50)].into());
    let (mut search, action) = search_of(60, Suspect::Outage, Some(ListWithoutAlerts { new_row_seconds: rows }));
    assert_eq!(action, Action::ReadOther(span(20, 60)));
    assert_eq!(search.on_other_window(OtherWindow::Readable, 1), narrow(20));
    // The only one in it is alone in its second then.
    assert_eq!(search.on_failure(span(0, 20), at(60), Suspect::Outage), narrow(10));
}

#[test]
fn eight_requests_that_read_nothing_are_an_outage() {
    let (mut search, _) = search_of(60, Suspect::Outage, None);
    assert_eq!(search.on_other_window(OtherWindow::Failing, 0), narrow(30));
    assert_eq!(search.on_failure(span(0, 30), at(60), Suspect::Outage), Action::ReadOther(span(15, 30)));
    assert_eq!(search.on_other_window(OtherWindow::Failing, 0), narrow(15));
    assert_eq!(search.on_failure(span(0, 15), at(60), Suspect::Outage), give_up(7));
}

#[test]
fn list_without_alerts_is_better_than_to_give_up() {
    let list = ListWithoutAlerts { new_row_seconds: Some([at(10), at(50)].into()) };
    let (mut search, _) = search_of(60, Suspect::Outage, Some(list));
    assert_eq!(search.on_other_window(OtherWindow::Failing, 0), narrow(50));
    assert_eq!(search.on_failure(span(0, 50), at(60), Suspect::Outage), Action::ReadOther(span(10, 50)));
    assert_eq!(search.on_other_window(OtherWindow::Failing, 0), narrow(10));
    assert_eq!(search.on_failure(span(0, 10), at(60), Suspect::Outage), Action::Take(NextStep::WithoutAlerts));
}

#[test]
fn tenant_is_probed_again_after_three_failures_in_a_row() {
    let (mut search, _) = search_of(60, Suspect::Outage, None);
    search.on_other_window(OtherWindow::Readable, 1);
    for width in [30, 15] {
        assert_eq!(search.on_failure(span(0, width), at(60), Suspect::Outage), narrow(width / 2));
    }
    assert_eq!(search.on_failure(span(0, 7), at(60), Suspect::Outage), Action::Probe);
    assert_eq!(search.on_probe(true), narrow(3));
}

#[test]
fn last_second_is_read_by_incident_only_if_it_is_no_outage() {
    let after = Span { from: at(1), to: None };
    let (mut search, action) = search_of(1, Suspect::Outage, None);
    assert_eq!(action, Action::ReadOther(after));
    assert_eq!(search.on_other_window(OtherWindow::Failing, 0), give_up(1));

    let (mut search, _) = search_of(1, Suspect::Outage, None);
    let bisect = Action::Bisect(span(0, 1), SecondListing::Unavailable);
    assert_eq!(search.on_other_window(OtherWindow::Readable, 0), bisect);
    assert_eq!(search.on_bisected(), Action::Take(NextStep::ContinueAt(at(1))));
    assert!(search.is_over());

    // Nor is it one where the API lists the second without alerts.
    let list = ListWithoutAlerts { new_row_seconds: Some([at(0)].into()) };
    let (mut search, _) = search_of(1, Suspect::Outage, Some(list));
    assert_eq!(search.on_other_window(OtherWindow::Failing, 0), Action::Take(NextStep::WithoutAlerts));

    // What fails while the tenant is readable otherwise is none.
    let list = ListWithoutAlerts { new_row_seconds: Some([at(0)].into()) };
    let (_, action) = search_of(1, Suspect::Record, Some(list));
    assert_eq!(action, Action::Bisect(span(0, 1), SecondListing::WithoutAlerts));
}

proptest! {
    /// Whatever Microsoft responds, a search comes to its end in few requests.
    #[test]
    fn search_ends(seconds in 1_i64..2_592_000, responses in prop::collection::vec(any::<(bool, bool)>(), 200)) {
        let mut search = FailureSearch::new(Vec::new());
        search.last_error = Some(Error::DeadlineExceeded);
        let (mut window, mut responses) = (span(0, seconds), responses.into_iter());
        let mut action = search.on_failure(window, at(seconds), Suspect::Outage);
        let mut requests = 0;
        loop {
            requests += 1;
            prop_assert!(requests < 100, "{:?}", search);
            let (is_good, has_rows) = responses.next().unwrap();
            action = match action {
                Action::Probe => search.on_probe(is_good),
                Action::ListWithoutAlerts => {
                    search.on_list_without_alerts(is_good.then_some(ListWithoutAlerts { new_row_seconds: None }))
                }
                Action::ReadOther(_) => {
                    let outcome = if is_good { OtherWindow::Readable } else { OtherWindow::Failing };
                    search.on_other_window(outcome, u32::from(has_rows))
                }
                Action::Bisect(..) => search.on_bisected(),
                Action::Take(NextStep::Retry) => search.on_failure(window, at(seconds), Suspect::Outage),
                Action::Take(NextStep::Narrow { width }) => {
                    window = Span { from: window.from, to: Some(window.from + SignedDuration::from_secs(width)) };
                    search.on_failure(window, at(seconds), Suspect::Outage)
                }
                Action::Take(
                    NextStep::ContinueAt(_)
                    | NextStep::SplitSecond { .. }
                    | NextStep::WithoutAlerts
                    | NextStep::GiveUp { .. },
                ) => break,
            };
        }
    }
}

//! Items as a release after this one may store them: with a higher number, and with an attribute and words that this one does
//! not know. The feature `later-release`, which only `cargo dev --chaos` turns on, makes functions write so. The functions
//! without it then show that they keep all of it.

use aws_sdk_dynamodb::{operation::update_item::builders::UpdateItemFluentBuilder, types::AttributeValue};

use super::table::{Item, SCHEMA, number, string, text, with_schema};

/// True in functions that stand for a later release.
pub(super) const IS_ON: bool = cfg!(feature = "later-release");

/// The number of the later release.
pub(super) const SCHEMA_NUMBER: u32 = 2;

/// The attribute that this release does not know.
const ATTRIBUTE: &str = "of_a_later_release";

/// The assignments in each update of the later release.
pub(super) const ASSIGNMENTS: &str = "#schema = :schema, of_a_later_release = :schema";

/// Makes an item that is put one of the later release, with a word of it where the item has any: in the history of a
/// tenant, as the kind of a backfill, and as the stage of a consent attempt.
pub(super) fn add_to(item: &mut Item) {
    item.insert(SCHEMA.into(), number(SCHEMA_NUMBER));
    item.insert(ATTRIBUTE.into(), number(SCHEMA_NUMBER));
    if let Some(AttributeValue::L(history)) = item.get_mut("history")
        && let Some(AttributeValue::M(first)) = history.first()
        && string(first, "status") != Some("suspended")
    {
        let mut suspended = first.clone();
        suspended.insert("status".into(), text("suspended"));
        suspended.insert("reason".into(), text("licence_expired"));
        history.insert(0, AttributeValue::M(suspended));
    }
    if string(item, "kind") == Some("backfill") {
        item.insert("kind".into(), text("reindex"));
    }
    if let Some(AttributeValue::M(stage)) = item.get_mut("stage") {
        stage.insert("name".into(), text("reviewed"));
    }
}

/// An update as this build sends it: unchanged, or with the assignments of the later release.
pub(super) fn marked(update: UpdateItemFluentBuilder) -> UpdateItemFluentBuilder {
    let has_schema =
        update.get_expression_attribute_names().as_ref().is_some_and(|names| names.contains_key("#schema"));
    if IS_ON && !has_schema { with_schema(update) } else { update }
}

/// The packed form of a version as this build stores it: unchanged, or with a part that this release does not know.
pub(super) fn packed(version: String) -> String {
    if IS_ON { version + " later" } else { version }
}

//! The JSON schema of `system.toml`, for editors that complete and check while one types.

use crate::system::tables::SystemTable;

/// The schema as it is committed in docs/system.schema.json, without the last line break.
pub(crate) fn text() -> String {
    let schema = schemars::schema_for!(SystemTable);
    serde_json::to_string_pretty(&schema).expect("a schema is made of maps with text keys")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_schema_is_up_to_date() {
        let committed = include_str!("../../docs/system.schema.json");
        assert!(committed.trim_end() == text(), "run `cargo xtask check --schema > docs/system.schema.json`");
    }

    #[test]
    fn the_schema_knows_every_key_and_no_other() {
        let schema: serde_json::Value = serde_json::from_str(&text()).unwrap();
        let vm = &schema["$defs"]["VmTable"];
        assert_eq!(vm["additionalProperties"], false);
        let keys: Vec<&String> = vm["properties"].as_object().unwrap().keys().collect();
        assert_eq!(
            keys,
            [
                "cpus",
                "hypervisor-leaf",
                "kernel",
                "name",
                "on-fault",
                "privileges",
                "ram",
                "unmapped",
                "vcpus"
            ]
        );
        assert_eq!(vm["required"], serde_json::json!(["name", "vcpus", "ram", "kernel"]));
    }
}

//! `DATABASE_URL`: the first relational database among the services.

use dewar_protocol::Service;
use serde_json::Value;

/// The URI of the first service that has one of a database scheme, the scheme rewritten to what frameworks expect. Nothing else
/// about the URI is looked at.
pub(super) fn url(services: &[Service]) -> Option<String> {
    services.iter().find_map(|service| {
        let uri = service.credentials.as_ref()?.expose().get("uri").and_then(Value::as_str)?;
        let (scheme, rest) = uri.split_once(':')?;
        let adapter = match scheme {
            "mysql" | "mysql2" => "mysql2",
            "postgres" | "postgresql" => "postgres",
            "db2" | "informix" => "ibmdb",
            _ => return None,
        };
        Some(format!("{adapter}:{rest}"))
    })
}

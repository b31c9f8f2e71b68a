//! Components as text.

/// A component with `wasi:cli/run` from the text of a core module's fields, which export `run` with an `i32` as its result.
pub(crate) fn command(fields: &str) -> Vec<u8> {
    assemble(&format!(
        r#"(component
  (core module $module {fields})
  (core instance $instance (instantiate $module))
  (func $run (result (result)) (canon lift (core func $instance "run")))
  (instance $exported (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $exported)))"#
    ))
}

/// Bytes of a module or component as text.
pub(crate) fn assemble(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap_or_else(|error| panic!("{error}"))
}

;; A command that traps three named functions down.
(component
  (core module $module
    (func $inner unreachable)
    (func $middle call $inner)
    (func $outer call $middle)
    (func $run (export "run") (result i32) call $outer (i32.const 0)))
  (core instance $instance (instantiate $module))
  (func $run (result (result)) (canon lift (core func $instance "run")))
  (instance $exported (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $exported)))

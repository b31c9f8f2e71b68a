;; A component whose one export belongs to no world that is called.
(component
  (core module $module (func (export "answer") (result i32) (i32.const 42)))
  (core instance $instance (instantiate $module))
  (func $answer (result u32) (canon lift (core func $instance "answer")))
  (instance $exported (export "answer" (func $answer)))
  (export "example:oracle/answers@1.0.0" (instance $exported)))

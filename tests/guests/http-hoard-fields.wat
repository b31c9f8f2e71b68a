;; An HTTP app that makes the host keep header fields of 60,000 bytes each, as many as there can be, and then computes for ever.
(component
  (import "wasi:http/types@0.2.0" (instance $types
    (export "incoming-request" (type (sub resource)))
    (export "response-outparam" (type (sub resource)))
    (export "fields" (type $fields (sub resource)))
    (type $error-cases (variant (case "invalid-syntax") (case "forbidden") (case "immutable")))
    (export "header-error" (type $error (eq $error-cases)))
    (export "[constructor]fields" (func (result (own $fields))))
    (export "[method]fields.append"
      (func (param "self" (borrow $fields)) (param "name" string) (param "value" (list u8)) (result (result (error $error)))))))
  (alias export $types "incoming-request" (type $request))
  (alias export $types "response-outparam" (type $answer))
  (core module $memory
    (memory (export "memory") 2)
    ;; The field's name, and its value of tabs.
    (data (i32.const 0) "x")
    (func $fill
      (memory.fill (i32.const 1024) (i32.const 9) (i32.const 60000)))
    (start $fill))
  (core instance $memory (instantiate $memory))
  (core func $new (canon lower (func $types "[constructor]fields")))
  (core func $append (canon lower (func $types "[method]fields.append") (memory (core memory $memory "memory"))))
  (core module $module
    (import "host" "new" (func $new (result i32)))
    (import "host" "append" (func $append (param i32 i32 i32 i32 i32 i32)))
    (func (export "handle") (param i32 i32) (local $left i32)
      (local.set $left (i32.const 180))
      (loop $again
        (call $append (call $new) (i32.const 0) (i32.const 1) (i32.const 1024) (i32.const 60000) (i32.const 16))
        (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
      (loop $busy (br $busy))))
  (core instance $instance (instantiate $module
    (with "host" (instance (export "new" (func $new)) (export "append" (func $append))))))
  (func $handle (param "request" (own $request)) (param "response-out" (own $answer)) (canon lift (core func $instance "handle")))
  (instance $exported (export "handle" (func $handle)))
  (export "wasi:http/incoming-handler@0.2.0" (instance $exported)))

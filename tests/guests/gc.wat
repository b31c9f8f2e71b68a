;; A module whose objects would live on a heap of the host's.
(component
  (core module $module
    (type $pair (struct (field i32) (field i32)))
    (func (export "make") (result i32)
      (struct.get $pair 0 (struct.new $pair (i32.const 1) (i32.const 2)))))
  (core instance (instantiate $module)))

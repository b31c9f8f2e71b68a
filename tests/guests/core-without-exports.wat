;; Valid, and nothing in it can be called.
(module
  (memory 1)
  (func (result i32) (i32.const 42)))

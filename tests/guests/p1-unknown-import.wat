;; A core module of WASI preview 1 that asks for more than WASI has.
(module
  (import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))
  (import "env" "launch_missiles" (func $launch_missiles))
  (memory (export "memory") 1)
  (func (export "_start") (call $launch_missiles)))

#![no_main]

use bulkhead::http::fuzz;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fuzz::questions(data));

#![no_main]

use bulkhead::pipeline::parse::fuzz;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fuzz::requests(data));

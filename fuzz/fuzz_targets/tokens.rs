#![no_main]

use bulkhead::tenancy::fuzz;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fuzz::tokens(data));

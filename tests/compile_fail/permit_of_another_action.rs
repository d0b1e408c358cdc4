use bulkhead::tenancy::{Permit, Read, Write};

pub fn forge(permit: Permit<Read>) -> Permit<Write> {
    permit
}

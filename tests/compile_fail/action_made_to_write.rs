use bulkhead::tenancy::{Read, Writes};

impl Writes for Read {}

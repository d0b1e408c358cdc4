use bulkhead::tenancy::OperatorScope;

pub fn forge() -> OperatorScope {
    OperatorScope::default()
}

-- What tenants keep, side by side: operators are told who keeps far more than others. Numbers and ids alone.

drop policy own_select on tenant_usage;
create policy own_select on tenant_usage for select to bulkhead_app, bulkhead_owner
    using (tenant_id = current_setting('bulkhead.tenant')::uuid);
create policy every_select on tenant_usage for select to bulkhead_control using (true);

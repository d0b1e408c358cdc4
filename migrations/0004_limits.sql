-- Limits that were set for a tenant, and what it uses: counted where it is written, never by counting rows.

-- Names and numbers; what is absent is the configuration's.
alter table tenant add column limits jsonb not null default '{}' check (jsonb_typeof(limits) = 'object');
grant select (limits) on tenant to bulkhead_auth;

alter table document_version add column bytes bigint not null default 0;

-- Changed last in the transaction that writes: its row lock lets one writer of a tenant pass the limit at a time.
create table tenant_usage (
    tenant_id uuid not null,
    documents bigint not null,
    bytes     bigint not null,
    primary key (tenant_id)
) with (fillfactor = 50);

-- What is there already. The owner sees the rows of all tenants until this transaction ends, which nobody else
-- enters: the changes above hold the tables exclusively. An upload's older versions count as the newest.
alter table document no force row level security;
alter table document_version no force row level security;
update document_version v set bytes = coalesce(octet_length(v.body), d.content_length)
    from document d where d.tenant_id = v.tenant_id and d.namespace_id = v.namespace_id
        and d.document_id = v.document_id;
insert into tenant_usage (tenant_id, documents, bytes)
    select d.tenant_id, count(*), coalesce((
        select sum(v.bytes) from document_version v where v.tenant_id = d.tenant_id), 0)
    from document d group by d.tenant_id;
alter table document force row level security;
alter table document_version force row level security;

alter table tenant_usage enable row level security;
alter table tenant_usage force row level security;
revoke all on tenant_usage from public;
create policy own_select on tenant_usage for select to bulkhead_app, bulkhead_owner, bulkhead_control
    using (tenant_id = current_setting('bulkhead.tenant')::uuid);
create policy own_insert on tenant_usage for insert to bulkhead_app, bulkhead_owner, bulkhead_control
    with check (tenant_id = current_setting('bulkhead.tenant')::uuid);
create policy own_update on tenant_usage for update to bulkhead_app, bulkhead_owner, bulkhead_control
    using (tenant_id = current_setting('bulkhead.tenant')::uuid)
    with check (tenant_id = current_setting('bulkhead.tenant')::uuid);
create policy own_delete on tenant_usage for delete to bulkhead_app, bulkhead_owner, bulkhead_control
    using (tenant_id = current_setting('bulkhead.tenant')::uuid);
grant select, insert, update, delete on tenant_usage to bulkhead_app;
grant select on tenant_usage to bulkhead_control;
grant select on tenant_usage to bulkhead_backup;

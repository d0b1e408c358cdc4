-- A tenant is estimated as if every row were its own: docs/decisions/a-tenant-may-own-everything.md.
-- By the statistics of all tenants, each has as few rows as the average one, and a large one's rows are gone through
-- once for each of a list instead of being looked up.
do $$
declare
    col record;
begin
    for col in
        select t.name as tab, c.name as attr
        from unnest(array['document', 'document_version', 'chunk', 'chunk_mention', 'term_frequency', 'job',
            'outbox', 'idempotency']) t(name)
        cross join unnest(array['tenant_id', 'namespace_id']) c(name)
    loop
        -- One value, and the least of a list of frequent ones that there can be.
        execute format('alter table %I alter column %I set (n_distinct = 1), alter column %2$I set statistics 1',
            col.tab, col.attr);
        if current_setting('server_version_num')::integer >= 180000 then
            -- Before the first count of the table too, and never counted.
            perform pg_restore_attribute_stats('schemaname', current_schema()::text, 'relname', col.tab,
                'attname', col.attr, 'inherited', false, 'null_frac', 0::real, 'avg_width', 16,
                'n_distinct', 1::real);
            execute format('alter table %I alter column %I set statistics 0', col.tab, col.attr);
        end if;
    end loop;
end $$;

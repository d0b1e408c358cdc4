-- A look for work reads one job of each tenant, and a lease the oldest of one, in the order in which they are leased:
-- jobs of one call are due at the same moment, and all of them were read to find the first few.
drop index job_due;
create index job_due on job (tenant_id, due_at, job_id) where state in ('queued', 'running');

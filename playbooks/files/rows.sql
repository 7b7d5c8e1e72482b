-- How many rows each table of the site has, and where each sequence is: one line each, the same on both sides of a move.
-- Tables that belong to an extension are left out.
select line from (
  select format('%I.%I ', schemas.nspname, tables.relname) || (xpath('/row/rows/text()', query_to_xml(
           format('select count(*) as rows from only %I.%I', schemas.nspname, tables.relname), false, true, '')))[1] as line
  from pg_class tables join pg_namespace schemas on schemas.oid = tables.relnamespace
  where tables.relkind = 'r' and schemas.nspname !~ '^pg_' and schemas.nspname <> 'information_schema'
    and not exists (select from pg_depend where classid = 'pg_class'::regclass and objid = tables.oid and deptype = 'e')
  union all
  select format('%I.%I at %s', schemaname, sequencename, coalesce(last_value::text, 'its start')) from pg_sequences
) as lines order by line collate "C";

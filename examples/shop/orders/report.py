"""The report that gets slow as the site grows: it reads every order of the period."""

SALES_BY_DAY = """
WITH sales AS (
    SELECT o.created::date AS day, o.id, l.quantity, l.quantity::bigint * l.price_cents AS cents
    FROM orders_order o JOIN orders_orderline l ON l.order_id = o.id
    WHERE o.created >= current_date - %(days)s::int
)
SELECT d::date AS day,
       count(DISTINCT s.id) AS orders,
       coalesce(sum(s.quantity), 0)::bigint AS pieces,
       coalesce(sum(s.cents), 0)::bigint AS cents,
       coalesce(avg(sum(s.cents)) OVER week, 0)::bigint AS cents_week_average,
       coalesce(sum(sum(s.cents)) OVER (ORDER BY d), 0)::bigint AS cents_so_far
FROM generate_series(current_date - %(days)s::int + 1, current_date, interval '1 day') AS d
LEFT JOIN sales s ON s.day = d::date
GROUP BY d
WINDOW week AS (ORDER BY d ROWS BETWEEN 6 PRECEDING AND CURRENT ROW)
ORDER BY d
"""

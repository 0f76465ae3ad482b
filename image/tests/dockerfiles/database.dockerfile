FROM debian:bookworm-slim
# grab a user first, so that its number never changes
RUN set -eux; \
	groupadd --system --gid 999 db; \
	useradd --system --uid 999 --gid 999 --home-dir /var/lib/db db

ENV DB_MAJOR 8.0
ENV DB_VERSION 8.0.39-1

RUN set -eux; \
# packages may come late: this comment stands within the command
	apt-get update; \
	apt-get install -y --no-install-recommends \
		ca-certificates \

		gnupg \
# and one more
		xz-utils \
	; \
	rm -rf /var/lib/apt/lists/*

VOLUME /var/lib/db
COPY config/ /etc/db/
COPY docker-entrypoint.sh /usr/local/bin/
RUN ln -s usr/local/bin/docker-entrypoint.sh /entrypoint.sh # for older users
ENTRYPOINT ["docker-entrypoint.sh"]
EXPOSE 3306 33060
STOPSIGNAL SIGTERM
CMD ["dbd"]

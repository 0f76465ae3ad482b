FROM nginx:alpine@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
LABEL org.example.title="A \"quoted\" title" org.example.plain=value \
      multi="two words"
LABEL old style label
HEALTHCHECK --interval=1m30s --timeout=5s --start-period=10s --start-interval=500ms --retries=5 \
  CMD curl -fs http://localhost/ || exit 1
HEALTHCHECK NONE
VOLUME ["/data", "/var/log/my app"]
VOLUME /a /b
EXPOSE 80/tcp $PORT 8000-8010/udp
USER app:$GROUP
WORKDIR relative/../$DIR
ENTRYPOINT []
CMD echo "$HOME" && exec run
STOPSIGNAL $SIGNAL
ARG A B=1 C="two words"

// How the walkerOS destination for Customer.io drives the clients: a rule of the
// mapping names the calls, in a fixed order, and `skip` leaves the track call out.

const LIFECYCLE = {
  page: (track, id, { url }) => track.trackPageView(id, url),
  destroy: (track, id) => track.destroy(id),
  suppress: (track, id) => track.suppress(id),
  unsuppress: (track, id) => track.unsuppress(id),
  addDevice: (track, id, { deviceId, platform, data }) => track.addDevice(id, deviceId, platform, data),
  deleteDevice: (track, id, { deviceId }) => track.deleteDevice(id, deviceId),
  merge: (track, id, { primaryType, primaryId, secondaryType, secondaryId }) =>
    track.mergeCustomers(primaryType, primaryId, secondaryType, secondaryId),
};

const TRANSACTIONAL = { sendEmail: 'SendEmailRequest', sendPush: 'SendPushRequest' };

export const MAPPING_SETTINGS = ['identify', ...Object.keys(LIFECYCLE), ...Object.keys(TRANSACTIONAL)];

export class WalkerDestination {
  #clients;
  #identify;
  #lastIdentity = '';

  constructor(clients, { identify = () => undefined } = {}) {
    this.#clients = clients;
    this.#identify = identify;
  }

  async push(event, { name = event.name, data = {}, skip = false, settings = {} } = {}) {
    const { id, session } = event.user;
    await this.#identifyOnce(id, settings.identify ?? this.#identify(event));
    await this.#lifecycle(id, settings);
    await this.#transactional(settings);
    if (!skip) {
      await this.#track(id, session, { name, data, timestamp: Math.floor(event.timestamp / 1000) });
    }
  }

  async #identifyOnce(id, attributes) {
    const identity = JSON.stringify([id, attributes]);
    if (!id || !attributes || identity === this.#lastIdentity) {
      return;
    }
    await this.#clients.track.identify(id, attributes);
    this.#lastIdentity = identity;
  }

  async #lifecycle(id, settings) {
    const wanted = Object.entries(LIFECYCLE).filter(([setting]) => id && settings[setting]);
    for (const [setting, call] of wanted) {
      await call(this.#clients.track, id, settings[setting]);
    }
  }

  async #transactional(settings) {
    const { app, sdk } = this.#clients;
    const wanted = Object.entries(TRANSACTIONAL).filter(([setting]) => settings[setting]);
    for (const [setting, request] of wanted) {
      await app[setting](new sdk[request](settings[setting]));
    }
  }

  #track(id, session, payload) {
    const { track } = this.#clients;
    return id ? track.track(id, payload) : track.trackAnonymous(session, payload);
  }
}
